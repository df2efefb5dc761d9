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
    /// A connection has another handle from now on. Returns whether the server is draining.
    let moved: @Sendable (ConnectionIdentity, ConnectionHandle) -> Bool
    let ended: @Sendable (ConnectionIdentity) -> Void

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
}
