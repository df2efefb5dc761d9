import ArgumentParser
import NBDClient
import NBDProtocol

/// `nbd info`: what a server tells of an export, after the model of nbdinfo.
struct InfoCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "info",
        abstract: "Show what a server tells of an export.",
        discussion: """
            Examples:
              nbd info nbd://localhost/disk
              nbd info --json 'nbd+unix:///disk?socket=/run/nbd.sock'
              nbd info --map nbd://localhost/disk
              nbd info 'nbds://server/disk?tls-certificates=/etc/pki/nbd'

            --can and --is print nothing and end with exit code 0 for yes, 2 for no, and 1 for an error.
            """)

    @Flag(help: "Print JSON.")
    var json = false

    @Flag(help: "Print the size alone, in bytes.")
    var size = false

    @Option(
        help: """
            Ask for one ability: cache, connect, df, extended-headers, fast-zero, flush, fua, multi-conn, read, structured-reply, trim, write, \
            zero.
            """)
    var can: String?

    @Option(help: "Ask for one property: read-only, rotational, tls.")
    var `is`: String?

    @Option(defaultAsFlag: "base:allocation", help: "Print the status of each part, as told by this metadata context.")
    var map: String? = nil

    @Flag(help: "With --map: print sums only.")
    var totals = false

    @OptionGroup var tls: ClientTLSOptions

    @Argument(help: "Where the export is: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH")
    var uri: String?

    mutating func validate() throws {
        // `--map URI`: the parser takes what follows for the context.
        if uri == nil, let value = map, value.contains("://") {
            uri = value
            map = "base:allocation"
        }
        guard uri != nil else { throw ValidationError("Missing expected argument '<uri>'") }
        guard [size, can != nil, `is` != nil, map != nil].count(where: \.self) <= 1 else {
            throw ValidationError("--size, --can, --is and --map exclude each other")
        }
        guard !totals || map != nil else { throw ValidationError("--totals goes with --map") }
    }

    func run() async throws {
        let uri = try NBDURI(parsing: uri ?? "", allowsLocalFiles: true)
        let options = try tls.clientOptions(for: uri)
        if let map {
            let map = try await InfoMap.fetch(uri, options, context: map)
            print(json ? map.json(totals: totals).text : map.text(totals: totals))
            return
        }
        let report = try await InfoReport.one(uri, options)
        guard let export = report.exports.first else { throw InfoFailure("the server told nothing") }
        if size {
            print(export.info.byteCount)
        } else if let name = can ?? `is` {
            guard let answer = InfoReport.ability(name, export.info, report.mode, isEncrypted: report.isEncrypted) else {
                throw InfoFailure("unknown ability '\(name.sanitized())' for --can or --is")
            }
            if !answer { throw ExitCode(2) }
        } else {
            print(json ? report.json.text : report.text)
        }
    }
}
