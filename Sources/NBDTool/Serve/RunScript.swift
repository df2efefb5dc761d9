import NBDProtocol

/// The shell script of `--run`: nbdkit's variables, then the command.
struct RunScript: Equatable {
    /// The server's first URI.
    let uri: String
    let exportName: String
    let command: String

    /// `uri`, `exportname`, `unixsocket` (a path or empty), `port` (a number or empty) and `nbd` (QEMU's old spelling of the address),
    /// exported, so that programs see them as the shell does.
    var text: String {
        var unixSocket = ""
        var port = ""
        var nbd = ""
        switch try? NBDURI(parsing: uri).address {
        case .unix(let path):
            unixSocket = path
            nbd = "nbd:unix:\(path)"
        case .tcp(let host, let number):
            port = String(number)
            nbd = "nbd:\(host.contains(":") ? "[\(host)]" : host):\(number)"
        default: break
        }
        if !nbd.isEmpty && !exportName.isEmpty { nbd += ":exportname=\(exportName)" }
        let variables = [("uri", uri), ("nbd", nbd), ("unixsocket", unixSocket), ("exportname", exportName), ("port", port)]
        return variables.map { "export \($0)=\(Self.quoted($1))\n" }.joined() + command
    }

    /// As one word of the shell that means itself.
    private static func quoted(_ text: String) -> String {
        "'" + text.split(separator: "'", omittingEmptySubsequences: false).joined(separator: "'\\''") + "'"
    }
}
