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

    @OptionGroup var tls: ClientTLSOptions

    @Argument(help: "Where the server is: nbd://HOST[:PORT] or nbd+unix:///?socket=PATH")
    var uri: String

    func run() async throws {
        let uri = try NBDURI(parsing: uri, allowsLocalFiles: true)
        let report = try await InfoReport.all(uri, tls.clientOptions(for: uri))
        print(json ? report.json.text : report.text)
    }
}
