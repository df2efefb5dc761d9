/// Who may do what, by rules: everything that one of `allowed` gives and none of `denied` takes away. Their order does not matter.
///
/// Without any rule, everything is allowed; as soon as there is one, nothing is that no rule allows.
public struct AccessRules: Authorizer {
    public var allowed: [AccessRule]
    public var denied: [AccessRule]
    /// Who may come in over TLS, by what TLS has proved (S-TLS-08); nil: whoever got through the TLS handshake. It is asked in addition to the
    /// rules.
    public var tlsVerdict: (@Sendable (PeerIdentity) -> Bool)?

    public init(allowed: [AccessRule] = [], denied: [AccessRule] = [], tlsVerdict: (@Sendable (PeerIdentity) -> Bool)? = nil) {
        self.allowed = allowed
        self.denied = denied
        self.tlsVerdict = tlsVerdict
    }

    /// There is no rule.
    public var isEmpty: Bool { allowed.isEmpty && denied.isEmpty }

    public func permissions(of peer: PeerIdentity, for export: String) -> Permissions {
        guard !isEmpty else { return .all }
        func union(_ rules: [AccessRule]) -> Permissions {
            rules.reduce(into: []) { union, rule in
                if rule.exports.matches(export), rule.fits(peer) { union.formUnion(rule.permissions) }
            }
        }
        return union(allowed).impliedByGiving.subtracting(union(denied)).impliedByTaking
    }

    /// Whom no rule could give anything is not even greeted.
    public func greets(_ peer: PeerIdentity) -> Bool {
        guard !isEmpty else { return true }
        let isBanned = denied.contains { rule in
            rule.permissions == .all && rule.exports == .everything && !rule.hasTLSConditions && rule.fitsOrigin(of: peer)
        }
        return !isBanned && allowed.contains { $0.fitsOrigin(of: peer) }
    }

    public func admits(_ peer: PeerIdentity) -> Bool {
        if peer.tls != .none, let tlsVerdict, !tlsVerdict(peer) { return false }
        guard greets(peer) else { return false }
        // In clear, more may still come: STARTTLS.
        return isEmpty || peer.tls == .none || allowed.contains { $0.fits(peer) }
    }
}

extension Permissions {
    /// With what is of no use alone comes what it needs.
    public var impliedByGiving: Permissions {
        var all = self
        if all.contains(.trim) { all.insert(.write) }
        if !all.isDisjoint(with: [.write, .contexts]) { all.insert(.read) }
        return all
    }

    /// Without what is needed, what needs it goes, too.
    var impliedByTaking: Permissions {
        var left = self
        if !left.contains(.read) { left.formIntersection(.list) }
        if !left.contains(.write) { left.remove(.trim) }
        return left
    }
}
