import ArgumentParser

/// `nbd bench`: makes a load and says how the server bears it.
struct BenchCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench",
        abstract: "Measure how fast a server is.",
        discussion: """
            Keeps DEPTH requests in flight on each connection for some seconds, and prints operations per second, bandwidth and latency. Patterns \
            that write DESTROY what the export holds.

            Examples:
              nbd bench nbd://localhost/disk
              nbd bench --pattern read --block-size 1M --depth 4 nbd://localhost/disk
              nbd bench --pattern randrw --mix 80 --connections 4 --json 'nbd+unix:///disk?socket=/run/nbd.sock'

            Control-C ends the run early and prints what was measured. Exit code 1: requests failed, or the server did.
            """)

    @Option(help: "read, write, randread, randwrite, or both at once: rw, randrw.")
    var pattern = "randread"

    @Option(help: ArgumentHelp("With rw and randrw: how many of 100 requests read. (default: 70)", valueName: "percent"))
    var mix: Int?

    @Option(help: ArgumentHelp("Bytes of each request: 4k, 1M. At most 32 MiB.", valueName: "size"))
    var blockSize = "4k"

    @Option(help: ArgumentHelp("Requests in flight on each connection, at most 1024.", valueName: "count"))
    var depth = 16

    @Option(help: ArgumentHelp("Connections, each with a thread of its own; at most 256.", valueName: "count"))
    var connections = 1

    @Option(help: ArgumentHelp("How long to measure; fractions are allowed.", valueName: "seconds"))
    var duration = 5.0

    @Option(help: ArgumentHelp("How long to run before that, uncounted.", valueName: "seconds"))
    var ramp = 0.3

    @Option(help: ArgumentHelp("Use only the first bytes of the export. (default: all)", valueName: "size"))
    var size: String?

    @Option(help: ArgumentHelp("The best replies to ask for: simple, structured, extended. The server may know less.", valueName: "kind"))
    var mode = "structured"

    @Option(help: ArgumentHelp("Other numbers give other offsets and other data.", valueName: "number"))
    var seed: UInt64 = 1

    @Option(
        help: ArgumentHelp(
            "How long to look for replies before sleeping, so that the server is measured and not how long it takes to wake a client. (default: 50 for one connection, 0 for several)",
            valueName: "microseconds"))
    var poll: Int?

    @Flag(help: "Print one JSON object.")
    var json = false

    @Argument(help: "Where the export is: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH")
    var uri: String

    /// - Throws: `.usage` naming the option at fault.
    var plan: BenchPlan {
        get throws(ToolError) {
            try BenchPlan(
                uri: uri, pattern: pattern, mix: mix, blockSize: blockSize, depth: depth, connections: connections, duration: duration,
                ramp: ramp, size: size, mode: mode, seed: seed, poll: poll)
        }
    }

    func run() async throws {
        do throws(ToolError) {
            let report = try await BenchRunner.run(plan)
            print(json ? report.json.text : report.text)
            if let failures = report.tally.failures { throw .runtime(failures) }
        } catch {
            Serve.report(error.message, program: "nbd")
            throw ExitCode(error.exitCode)
        }
    }
}
