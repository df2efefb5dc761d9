/// Where the credentials of one side of TLS are, as QEMU's `tls-creds-x509` and `tls-creds-psk` objects say it.
///
///     tls-creds-x509,id=ID,dir=DIR,endpoint=server[,verify-peer=off]      ca-cert.pem, server-cert.pem, server-key.pem[, ca-crl.pem]
///     tls-creds-x509,id=ID,dir=DIR,endpoint=client[,verify-peer=off]      ca-cert.pem[, client-cert.pem, client-key.pem]
///     tls-creds-psk,id=ID,dir=DIR,endpoint=server                         keys.psk: lines of USER:HEXKEY
///     tls-creds-psk,id=ID,dir=DIR,endpoint=client[,username=USER]         keys.psk
struct TLSCredentialsPlan: Equatable, Sendable {
    enum Endpoint: String, Equatable, Sendable {
        case client
        case server
    }

    enum Kind: Equatable, Sendable {
        /// - verifiesPeer: of a server: clients must show a certificate of our CA. Of a client: the server's is checked.
        /// - checksOwn: our own certificates are looked at when they are loaded.
        case x509(verifiesPeer: Bool, checksOwn: Bool)
        /// - username: who a client says it is.
        case psk(username: String?)
    }

    var kind: Kind
    var directory: String
    /// QEMU's default is `client`.
    var endpoint = Endpoint.client

    /// What may lie in the directory.
    var files: [String] {
        let names =
            switch kind {
            case .x509: ["ca-cert.pem", "ca-crl.pem", "\(endpoint)-cert.pem", "\(endpoint)-key.pem"]
            case .psk: ["keys.psk"]
            }
        return names.map { "\(directory)/\($0)" }
    }

    init(kind: Kind, directory: String, endpoint: Endpoint) {
        self.kind = kind
        self.directory = directory
        self.endpoint = endpoint
    }

    /// - Throws: `.usage` naming the object and the key at fault.
    init(_ definition: ObjectDefinition) throws(ToolError) {
        var keys = definition.keys
        let context = keys.context
        guard definition.type != "tls-creds-anon" else {
            throw .usage("\(context): anonymous TLS proves nothing to either side, and is not supported: use tls-creds-x509 or tls-creds-psk")
        }
        guard let directory = keys.take("dir"), !directory.isEmpty else { throw .usage("\(context): 'dir' is missing") }
        self.directory = directory
        if let text = keys.take("endpoint") {
            guard let endpoint = Endpoint(rawValue: text) else { throw .usage("\(context): 'endpoint' is server or client, not '\(text)'") }
            self.endpoint = endpoint
        }
        let verifiesPeer = try keys.takeSwitch("verify-peer")
        if let priority = keys.take("priority"), priority != "NORMAL" {
            throw .usage(
                "\(context): 'priority' is a rule for GnuTLS, which is not used here: TLS 1.2 and 1.3 with their forward-secret suites are on")
        }
        if definition.type == "tls-creds-x509" {
            if keys.take("passwordid") != nil {
                throw .usage("\(context): 'passwordid' is not supported: the private key must be stored without a password")
            }
            kind = .x509(verifiesPeer: verifiesPeer ?? true, checksOwn: try keys.takeSwitch("sanity-check") ?? true)
        } else {
            if verifiesPeer == false { throw .usage("\(context): with keys that both sides know, 'verify-peer' cannot be off") }
            kind = .psk(username: keys.take("username"))
        }
        try keys.finish()
    }
}
