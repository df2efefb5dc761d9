import ArgumentParser
import NBDProtocol

/// `nbd list`: all exports of a server, as `nbdinfo --list` shows them.
struct ListCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list",
        abstract: "Show all exports of a server.",
        discussion: """
            Examples:
              nbd list nbd://localhost
              nbd list --json 'nbd+unix:///?socket=/run/nbd.sock'
            """)

    @Flag(help: "Print JSON.")
    var json = false

    @Argument(help: "Where the server is: nbd://HOST[:PORT] or nbd+unix:///?socket=PATH")
    var uri: String

    func run() async throws {
        let report = try await InfoReport.all(NBDURI(parsing: uri))
        print(json ? report.json.text : report.text)
    }
}
