import NBDEngine
import NBDProtocol

/// What all connections of a server share.
struct ConnectionEnvironment: Sendable {
    let registry: ExportRegistry
    let configuration: NBDServer.Configuration
    let budget: MemoryBudget
    let journal: Journal
    /// Where plain connections go when their transmission begins; empty: nowhere.
    let fastLoops: [FastLoop]
    /// A client has chosen an export (true) or, having chosen one, is gone (false).
    let attachmentChanged: @Sendable (Bool) -> Void
    /// A connection has finished its handshake; may be said more than once.
    let negotiated: @Sendable (ConnectionIdentity) -> Void
    /// A connection has another handle from now on. Returns whether the server is draining.
    let moved: @Sendable (ConnectionIdentity, ConnectionHandle) -> Bool
    let ended: @Sendable (ConnectionIdentity) -> Void

    enum LookUp {
        case found(ServedExport)
        /// There is one, which this client may know of, but not open.
        case forbidden
        /// There is none, as far as this client can tell.
        case unknown(isHidden: Bool)
    }

    /// What a name means to a client, cut down to what it may do.
    func lookUp(_ name: String, for peer: PeerIdentity) -> LookUp {
        guard let export = registry.find(name) else { return .unknown(isHidden: false) }
        guard let authorizer = configuration.authorizer else { return .found(export) }
        // In clear there is no such export, whatever the rules say of it: the handshake hides it.
        guard !export.description.requiresTLS || peer.tls != .none else { return .found(export) }
        let permissions = authorizer.permissions(of: peer, for: export.description.name)
        guard permissions.contains(.read) else { return permissions.contains(.list) ? .forbidden : .unknown(isHidden: true) }
        return .found(export.restricted(to: permissions))
    }

    /// What LIST shows to a client.
    func list(for peer: PeerIdentity) -> [ExportDescription] {
        let all = registry.all.map(\.description)
        guard let authorizer = configuration.authorizer else { return all }
        return all.filter { authorizer.permissions(of: peer, for: $0.name).contains(.list) }
    }

    func greets(_ peer: PeerIdentity) -> Bool { configuration.authorizer?.greets(peer) ?? true }

    func admits(_ peer: PeerIdentity) -> Bool {
        guard let authorizer = configuration.authorizer else { return true }
        guard authorizer.admits(peer) else { return false }
        // Once TLS is up, nothing more will be known of a client: who may do nothing with any export has no business here.
        guard peer.tls != .none else { return true }
        let exports = registry.all
        return exports.isEmpty || exports.contains { !authorizer.permissions(of: peer, for: $0.description.name).isEmpty }
    }

    func tracer(for identity: ConnectionIdentity) -> Tracer? {
        guard let tracer = configuration.tracer else { return nil }
        return { event in tracer(event, identity) }
    }
}

/// What a server can do to a connection, from any thread.
struct ConnectionHandle: Sendable {
    /// Finishes what is in flight, then closes.
    let drain: @Sendable () -> Void
    /// Cuts it, whatever is in flight.
    let cut: @Sendable () -> Void
    /// Cuts it if it is still in its handshake.
    var crowdOut: @Sendable () -> Void = {}
}
