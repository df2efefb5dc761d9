import NBDClient
import NBDProtocol
import NBDTLS

/// How a client command encrypts: `--tls-creds` with its object, or what a URI says.
struct TLSClientPlan: Equatable, Sendable {
    /// As in qemu, whoever names no user is this one.
    static let defaultUser = "qemu"

    var credentials: TLSCredentialsPlan
    var hostname: String?

    init(credentials: TLSCredentialsPlan, hostname: String? = nil) {
        self.credentials = credentials
        self.hostname = hostname
    }

    /// nil: `--tls-creds` was not given.
    init?(_ options: ServeOptions) throws(ToolError) {
        let objects = try ToolObject.all(options.objects)
        guard let id = options.tlsCredentials else { return nil }
        self.init(credentials: try ServePlan.credentials(id, objects, .client), hostname: options.tlsHostname)
    }

    /// - Throws: `.runtime` naming the file at fault.
    func load() throws(ToolError) -> TLSClientCredentials {
        do {
            switch credentials.kind {
            case .x509(let verifiesPeer, let checksOwn):
                return try TLSClientCredentials(directory: credentials.directory, verifiesPeer: verifiesPeer, checksOwn: checksOwn)
            case .psk(let username):
                return try TLSClientCredentials(
                    user: username ?? Self.defaultUser, preSharedKeyFile: credentials.directory + "/keys.psk")
            }
        } catch {
            throw .runtime("\(error)")
        }
    }
}

extension TLSCredentialsPlan {
    /// The server's credentials, and what is odd about them.
    ///
    /// - Throws: `.runtime` naming the file at fault.
    func load() throws(ToolError) -> TLSServerCredentials {
        do {
            switch kind {
            case .x509(let verifiesPeer, let checksOwn):
                return try TLSServerCredentials(directory: directory, verifiesPeer: verifiesPeer, checksOwn: checksOwn)
            case .psk: return try TLSServerCredentials(preSharedKeyDirectory: directory)
            }
        } catch {
            throw .runtime("\(error)")
        }
    }
}
