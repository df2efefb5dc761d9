import NBDTLS

/// Who is at the other end of a connection, as far as the system and TLS have proved it. What rules are about.
public struct PeerIdentity: Equatable, Sendable {
    public enum Address: Hashable, Sendable {
        case ip(IPAddress)
        /// A Unix socket: see `unix` for who is behind it.
        case unix
        /// A socket that is neither.
        case unknown
    }

    /// The process that connected to a Unix socket, as the kernel noted it at that moment (SO_PEERCRED; LOCAL_PEERCRED on Darwin).
    public struct UnixCredentials: Hashable, Sendable {
        public var uid: UInt32
        /// The effective group; others that the user belongs to are not told.
        public var gid: UInt32
        /// 0 when the process is outside of this one's pid namespace. A number is used again when its process has ended: fit for a helper that
        /// is known to live, not as a secret.
        public var pid: Int32

        public init(uid: UInt32, gid: UInt32, pid: Int32) {
            self.uid = uid
            self.gid = gid
            self.pid = pid
        }
    }

    /// What TLS has proved. Set once its handshake is over.
    public enum TLS: Hashable, Sendable {
        /// The connection is in clear.
        case none
        /// TLS, but the client has shown nothing: no certificate was asked for.
        case anonymous
        /// The subject of a certificate that was verified, in the words of GnuTLS as QEMU sees it: `C=DE,O=Example,CN=client`.
        case certificate(distinguishedName: String)
        case psk(user: String)
    }

    public var address: Address
    public var unix: UnixCredentials?
    public var tls: TLS

    public init(address: Address, unix: UnixCredentials? = nil, tls: TLS = .none) {
        self.address = address
        self.unix = unix
        self.tls = tls
    }

    /// A peer whose TLS handshake is over.
    mutating func prove(_ peer: TLSPeer) {
        switch peer {
        case .anonymous: tls = .anonymous
        case .certificate(let name): tls = .certificate(distinguishedName: name)
        case .psk(let user): tls = .psk(user: user)
        }
    }

    /// What `authz` objects compare: the distinguished name or the name of the PSK user.
    public var tlsName: String? {
        switch tls {
        case .none, .anonymous: nil
        case .certificate(let name): name
        case .psk(let user): user
        }
    }
}
