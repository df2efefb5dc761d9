import NIOSSL
import Synchronization

/// How a server proves who it is, and what it asks of its clients.
///
///     let credentials = try TLSServerCredentials(directory: "/etc/pki/nbd")
///     configuration.tls = .init(credentials: TLSCredentialStore(credentials), policy: .required)
public struct TLSServerCredentials: Sendable {
    private enum Kind: Sendable {
        case x509(X509Credentials, TLSConfiguration, verifiesPeer: Bool)
        case psk(@Sendable (String) -> [UInt8]?)
    }

    private let kind: Kind
    /// What is odd about the files, but no reason not to start; one line each.
    public let warnings: [String]

    /// Certificates from a directory as QEMU has it: `server-cert.pem`, `server-key.pem`, `ca-cert.pem` and, if there is one, `ca-crl.pem`.
    ///
    /// - Parameters:
    ///   - verifiesPeer: clients must show a certificate of an authority in `ca-cert.pem`; otherwise they are not asked for one.
    ///   - checksOwn: mistakes in our own certificates are errors now, not when clients come.
    /// - Throws: naming the file at fault.
    public init(directory: String, verifiesPeer: Bool = true, checksOwn: Bool = true) throws(TLSCredentialError) {
        let files = try X509Credentials.Files(directory: directory, .server)
        guard files.chain != nil else { throw TLSCredentialError("\(directory)/server-cert.pem: no such file") }
        guard files.authorities != nil || !verifiesPeer else {
            throw TLSCredentialError("\(directory)/ca-cert.pem: no such file: needed to verify clients")
        }
        try self.init(files, verifiesPeer: verifiesPeer, checksOwn: checksOwn)
    }

    /// The same from bytes in PEM.
    ///
    /// - Parameters:
    ///   - authorities: who vouches for clients; empty: clients are not asked for certificates.
    ///   - revocations: certificates that do not count any more; empty: all do.
    public init(
        certificateChain: [UInt8], privateKey: [UInt8], authorities: [UInt8] = [], revocations: [UInt8] = []
    ) throws(TLSCredentialError) {
        var files = X509Credentials.Files()
        files.chain = CredentialFile(name: "certificate", bytes: certificateChain)
        files.key = CredentialFile(name: "private key", bytes: privateKey)
        if !authorities.isEmpty { files.authorities = CredentialFile(name: "certificate of the authority", bytes: authorities) }
        if !revocations.isEmpty { files.revocations = CredentialFile(name: "list of revoked certificates", bytes: revocations) }
        try self.init(files, verifiesPeer: !authorities.isEmpty, checksOwn: true)
    }

    private init(_ files: X509Credentials.Files, verifiesPeer: Bool, checksOwn: Bool) throws(TLSCredentialError) {
        let credentials = try X509Credentials(files, .server, checksOwn: checksOwn)
        guard let key = credentials.key else { throw TLSCredentialError("a server needs a certificate and its key") }
        var configuration = TLSConfiguration.makeServerConfiguration(
            certificateChain: credentials.chain.map { .certificate($0) }, privateKey: .privateKey(key))
        TLSSuites.apply(to: &configuration, isPSK: false)
        configuration.certificateVerification = verifiesPeer ? .noHostnameVerification : .none
        configuration.trustRoots = .certificates(credentials.authorities)
        kind = .x509(credentials, configuration, verifiesPeer: verifiesPeer)
        do {
            _ = try NIOSSLContext(configuration: configuration)
        } catch {
            throw TLSCredentialError("\(files.key?.name ?? ""): does not belong to the certificate \(files.chain?.name ?? ""), or that is not one for TLS")
        }
        warnings = credentials.warnings
    }

    /// Keys by user: TLS 1.2 only, as BoringSSL knows them in no other version.
    ///
    /// - Parameter key: the key of a user; nil: there is no such user. Called on an event loop: must not wait.
    public init(preSharedKeys key: @escaping @Sendable (_ user: String) -> [UInt8]?) {
        kind = .psk(key)
        warnings = []
    }

    /// Keys from `keys.psk` in a directory, as psktool writes it.
    public init(preSharedKeyDirectory directory: String) throws(TLSCredentialError) {
        let keys = try PreSharedKeys(path: directory + "/keys.psk")
        self.init(preSharedKeys: { keys[$0] })
    }

    /// The server's side of one connection.
    ///
    /// Each has a context of its own, and with it the keys of its session tickets: no client can resume a session of another connection. One that
    /// is resumed would be as good as the day it began, although the client's certificate has expired since, or its key is gone: BoringSSL looks at
    /// them in whole handshakes only, and NIOSSL has no switch for tickets.
    public func makeSession() throws -> TLSServerSession {
        switch kind {
        case .x509(let credentials, let configuration, let verifiesPeer):
            return TLSServerSession(NIOSSLServerHandler(context: try NIOSSLContext(configuration: configuration))) { certificate throws(TLSRefusal) in
                guard verifiesPeer else { return .anonymous }
                guard let certificate else { throw TLSRefusal("the client has shown no certificate") }
                return try credentials.peer(certificate)
            }
        case .psk(let key):
            // What the context calls back does not say for whom.
            let proved = Proved()
            var configuration = TLSConfiguration.makePreSharedKeyConfiguration()
            TLSSuites.apply(to: &configuration, isPSK: true)
            configuration.certificateVerification = .none
            configuration.pskServerProvider = { asked in
                guard let key = key(asked.clientIdentity), key.count <= asked.maxPSKLength else {
                    throw TLSRefusal("no key for this user")
                }
                proved.user.withLock { $0 = asked.clientIdentity }
                return PSKServerIdentityResponse(key: NIOSSLSecureBytes(key))
            }
            return TLSServerSession(NIOSSLServerHandler(context: try NIOSSLContext(configuration: configuration))) { _ throws(TLSRefusal) in
                guard let user = proved.user.withLock({ $0 }) else { throw TLSRefusal("the client has not named a user") }
                return .psk(user: user)
            }
        }
    }

    /// Whose key a handshake has asked for. When it has succeeded, the peer knows that key.
    private final class Proved: Sendable {
        let user = Mutex<String?>(nil)
    }
}

/// The credentials that new connections of a server get; those there are keep theirs.
public final class TLSCredentialStore: Sendable {
    private let content: Mutex<TLSServerCredentials>

    public init(_ credentials: TLSServerCredentials) { content = Mutex(credentials) }

    public var current: TLSServerCredentials { content.withLock { $0 } }

    public func replace(with credentials: TLSServerCredentials) { content.withLock { $0 = credentials } }
}
