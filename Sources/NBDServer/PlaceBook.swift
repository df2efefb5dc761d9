/// Who takes up how much of the server: connections by their peer, and those that have not finished their handshake.
struct PlaceBook {
    /// Whom a limit for one peer is about.
    enum Key: Hashable, Sendable {
        case v4(UInt32)
        /// The first 64 bits: a host that has one address has all of its network.
        case v6(UInt64)
        case user(UInt32)
        case unknown

        init(_ peer: PeerIdentity) {
            switch peer.address {
            case .ip(.v4(let bits)): self = .v4(bits)
            case .ip(.v6(let bits)): self = .v6(UInt64(truncatingIfNeeded: bits >> 64))
            case .unix, .unknown: self = peer.unix.map { .user($0.uid) } ?? .unknown
            }
        }
    }

    enum Verdict: Equatable {
        /// - crowdsOut: whose handshake takes longest: it has to go, so that a place for this one is free.
        case welcome(crowdsOut: UInt64?)
        /// This peer has as many connections as one may have.
        case refused
    }

    /// 0: no limit; all of them.
    let peerConnectionLimit: Int
    let handshakeLimit: Int
    let peerHandshakeLimit: Int

    private var peers: [UInt64: Key] = [:]
    private var counts: [Key: Int] = [:]
    private var handshakes: [UInt64: Key] = [:]

    init(_ configuration: NBDServer.Configuration) {
        peerConnectionLimit = configuration.effectivePeerConnectionLimit
        handshakeLimit = max(0, configuration.handshakeCountLimit)
        peerHandshakeLimit = max(0, configuration.peerHandshakeCountLimit)
    }

    var handshakeCount: Int { handshakes.count }

    /// A connection begins. Ids grow with time.
    mutating func enter(_ id: UInt64, _ key: Key) -> Verdict {
        let count = counts[key, default: 0]
        if peerConnectionLimit > 0, count >= peerConnectionLimit { return .refused }
        // First its own: who opens many connections at once is in the way of nobody else.
        var victim: UInt64?
        if peerHandshakeLimit > 0, handshakes.values.count(where: { $0 == key }) >= peerHandshakeLimit {
            victim = handshakes.lazy.filter { $0.value == key }.map(\.key).min()
        } else if handshakeLimit > 0, handshakes.count >= handshakeLimit {
            victim = handshakes.keys.min()
        }
        if let victim { handshakes[victim] = nil }
        peers[id] = key
        counts[key] = count + 1
        handshakes[id] = key
        return .welcome(crowdsOut: victim)
    }

    /// The handshake is over. May be said more than once.
    mutating func negotiated(_ id: UInt64) { handshakes[id] = nil }

    /// The connection is gone.
    mutating func leave(_ id: UInt64) {
        handshakes[id] = nil
        guard let key = peers.removeValue(forKey: id), let count = counts[key] else { return }
        counts[key] = count > 1 ? count - 1 : nil
    }
}

extension NBDServer.Configuration {
    /// One peer leaves a quarter of the places to others, unless it is told otherwise. Few places are meant for few clients: `qemu-nbd -e 4` is
    /// there for the four connections of one nbdcopy.
    var effectivePeerConnectionLimit: Int {
        max(0, peerConnectionLimit ?? (connectionLimit > 32 ? connectionLimit - connectionLimit / 4 : 0))
    }
}
