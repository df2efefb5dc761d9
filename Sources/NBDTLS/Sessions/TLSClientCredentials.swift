public import NIOSSL

/// How a client proves who it is, and which servers it believes.
public struct TLSClientCredentials: Sendable {
    private enum Kind: Sendable {
        case x509(X509Credentials, usesSystemAuthorities: Bool, verifiesPeer: Bool)
        case psk(user: String, key: [UInt8])
    }

    private let kind: Kind
    public let warnings: [String]

    /// The authorities that the system trusts, and no certificate of our own.
    public init() {
        kind = .x509(X509Credentials(), usesSystemAuthorities: true, verifiesPeer: true)
        warnings = []
    }

    /// Certificates from a directory as QEMU and libnbd have it: `ca-cert.pem`, and if they are there `ca-crl.pem`, `client-cert.pem` and
    /// `client-key.pem`.
    ///
    /// - Parameter verifiesPeer: false: any server is believed.
    public init(directory: String, verifiesPeer: Bool = true, checksOwn: Bool = true) throws(TLSCredentialError) {
        let files = try X509Credentials.Files(directory: directory, .client)
        guard files.authorities != nil || !verifiesPeer else {
            throw TLSCredentialError("\(directory)/ca-cert.pem: no such file: needed to verify the server")
        }
        let credentials = try X509Credentials(files, .client, checksOwn: checksOwn)
        kind = .x509(credentials, usesSystemAuthorities: false, verifiesPeer: verifiesPeer)
        warnings = credentials.warnings
    }

    /// The same with any server believed, and no certificate of our own.
    public static var unverified: TLSClientCredentials {
        TLSClientCredentials(kind: .x509(X509Credentials(), usesSystemAuthorities: false, verifiesPeer: false))
    }

    /// A key that the server knows, too: TLS 1.2 only.
    ///
    /// - Parameter user: at most 128 bytes, without NUL.
    public init(user: String, key: [UInt8]) throws(TLSCredentialError) {
        guard 1...PreSharedKeys.userByteLimit ~= user.utf8.count, !user.utf8.contains(0) else {
            throw TLSCredentialError("the user's name must have 1 to \(PreSharedKeys.userByteLimit) bytes, none of them NUL")
        }
        guard 1...PreSharedKeys.keyByteLimit ~= key.count else { throw TLSCredentialError("the key must have 1 to \(PreSharedKeys.keyByteLimit) bytes") }
        self.init(kind: .psk(user: user, key: key))
    }

    /// The key of `user` in a file that psktool wrote.
    public init(user: String, preSharedKeyFile path: String) throws(TLSCredentialError) {
        guard let key = try PreSharedKeys(path: path)[user] else { throw TLSCredentialError("\(path): no key for user '\(user)'") }
        try self.init(user: user, key: key)
    }

    private init(kind: Kind) {
        self.kind = kind
        warnings = []
    }

    /// The client's side of one connection.
    ///
    /// - Parameters:
    ///   - hostname: what the server's certificate must be for. nil: no name is looked for, which is right for a Unix socket.
    ///   - isAddress: whether it is an IP address.
    /// - Throws: `TLSCredentialError`.
    public func makeSession(hostname: String?, isAddress: Bool) throws(TLSCredentialError) -> TLSClientSession {
        do {
            switch kind {
            case .x509(let credentials, let usesSystemAuthorities, let verifiesPeer):
                var configuration = TLSConfiguration.makeClientConfiguration()
                TLSSuites.apply(to: &configuration, isPSK: false)
                // The name is checked by us: see `HostName`.
                configuration.certificateVerification = verifiesPeer ? .noHostnameVerification : .none
                configuration.trustRoots = usesSystemAuthorities ? .default : .certificates(credentials.authorities)
                configuration.certificateChain = credentials.chain.map { .certificate($0) }
                configuration.privateKey = credentials.key.map { .privateKey($0) }
                // An address is no name for SNI.
                let handler = try NIOSSLClientHandler(
                    context: NIOSSLContext(configuration: configuration), serverHostname: isAddress ? nil : hostname)
                return TLSClientSession(handler) { certificate throws(TLSRefusal) in
                    guard verifiesPeer else { return .anonymous }
                    guard let certificate else { throw TLSRefusal("the server has shown no certificate") }
                    return try credentials.peer(certificate, host: hostname.map(HostName.init))
                }
            case .psk(let user, let key):
                var configuration = TLSConfiguration.makePreSharedKeyConfiguration()
                TLSSuites.apply(to: &configuration, isPSK: true)
                configuration.certificateVerification = .none
                configuration.pskClientProvider = { _ in PSKClientIdentityResponse(key: NIOSSLSecureBytes(key), identity: user) }
                let handler = try NIOSSLClientHandler(context: NIOSSLContext(configuration: configuration), serverHostname: nil)
                return TLSClientSession(handler) { _ throws(TLSRefusal) in .psk(user: user) }
            }
        } catch let error as NIOSSLExtraError {
            throw TLSCredentialError("'\(hostname ?? "")' cannot be the name of a TLS server: \(error)")
        } catch {
            throw TLSCredentialError("the certificate and its key do not belong together")
        }
    }
}

/// The client's side of TLS on one connection. Belongs to the connection's event loop.
public final class TLSClientSession {
    public let handler: NIOSSLClientHandler
    private let identify: (NIOSSLCertificate?) throws(TLSRefusal) -> TLSPeer

    init(_ handler: NIOSSLClientHandler, identify: @escaping (NIOSSLCertificate?) throws(TLSRefusal) -> TLSPeer) {
        self.handler = handler
        self.identify = identify
    }

    /// Who the server has proved to be; see `TLSServerSession.peer`.
    @discardableResult
    public func peer() throws(TLSRefusal) -> TLSPeer { try identify(handler.peerCertificate) }
}
