/// What some clients may do with some exports: everybody whom all the conditions fit. Within one condition any value will do.
///
/// A condition about something that is not known of a client does not fit it: no user id is behind a TCP connection, and no name behind one
/// without TLS.
public struct AccessRule: Equatable, Sendable {
    public enum Origin: Hashable, Sendable {
        case network(IPNetwork)
        /// Any Unix socket.
        case unix
    }

    /// By name.
    public var exports = Glob.everything
    /// Empty: from anywhere; so are the following.
    public var origins: [Origin] = []
    public var uids: [UInt32] = []
    /// Effective groups.
    public var gids: [UInt32] = []
    public var pids: [Int32] = []
    /// Whether the client speaks TLS; nil: no matter.
    public var usesTLS: Bool?
    /// The subject of the client's certificate (see `PeerIdentity.TLS`); nil: no matter.
    public var distinguishedName: Glob?
    /// The user of its pre-shared key.
    public var pskUser: Glob?
    public var permissions: Permissions

    public init(_ permissions: Permissions) { self.permissions = permissions }

    /// Whether the rule is about this client, whatever the export.
    public func fits(_ peer: PeerIdentity) -> Bool { fitsOrigin(of: peer) && fitsTLS(of: peer) }

    /// Leaves out what TLS may still prove.
    func fitsOrigin(of peer: PeerIdentity) -> Bool {
        guard origins.isEmpty || origins.contains(where: { $0.fits(peer.address) }) else { return false }
        guard hasUnixConditions else { return true }
        guard let unix = peer.unix else { return false }
        return (uids.isEmpty || uids.contains(unix.uid)) && (gids.isEmpty || gids.contains(unix.gid)) && (pids.isEmpty || pids.contains(unix.pid))
    }

    private func fitsTLS(of peer: PeerIdentity) -> Bool {
        if let usesTLS, usesTLS != (peer.tls != .none) { return false }
        if let distinguishedName {
            guard case .certificate(let name) = peer.tls, distinguishedName.matches(name) else { return false }
        }
        if let pskUser {
            guard case .psk(let user) = peer.tls, pskUser.matches(user) else { return false }
        }
        return true
    }

    var hasUnixConditions: Bool { !uids.isEmpty || !gids.isEmpty || !pids.isEmpty }
    var hasTLSConditions: Bool { usesTLS != nil || distinguishedName != nil || pskUser != nil }

    /// Why no client can ever fit; nil: some may.
    public var contradiction: String? {
        if hasUnixConditions, !origins.isEmpty, !origins.contains(.unix) { return "users and groups are known of Unix sockets only" }
        if usesTLS == false, distinguishedName != nil || pskUser != nil { return "a client without TLS has no TLS identity" }
        if distinguishedName != nil, pskUser != nil { return "a client has a certificate or a pre-shared key, not both" }
        return nil
    }
}

extension AccessRule.Origin {
    func fits(_ address: PeerIdentity.Address) -> Bool {
        switch (self, address) {
        case (.network(let network), .ip(let address)): network.contains(address)
        case (.unix, .unix): true
        default: false
        }
    }
}
