import Block
public import Logging
import NBDEngine
import NBDProtocol
import NIOCore
import NIOPosix
public import ServiceLifecycle
import Synchronization

/// A server of disks: exports on one side, listeners on the other.
///
///     let server = try NBDServer(exports: [Export(name: "scratch", device: disk)],
///                                configuration: .init(listeners: [Listener(.tcp(host: "127.0.0.1", port: 10809))]), logger: logger)
///     try await server.run()
///
/// `run()` makes it a ServiceLifecycle `Service`: a graceful shutdown finishes the requests in flight, answers later ones with ESHUTDOWN,
/// and cuts what is left after `drainLimit`. The library logs through the logger it is given and touches no signal, no environment and
/// nothing global.
public final class NBDServer: Service, Sendable {
    private enum Phase { case idle, starting, serving, draining, ended }

    private struct Connection {
        let channel: any Channel
        let handler: NIOLoopBound<ConnectionHandler>
    }

    private struct State {
        var phase = Phase.idle
        var listeners: [any Channel] = []
        var connections: [UInt64: Connection] = [:]
        var nextConnection: UInt64 = 1
        var attachedCount = 0
        var uris: [String] = []
        /// Who waits for the end of the phases that lead to `draining` and to no connection.
        var waitingForDrain: [CheckedContinuation<Void, Never>] = []
        var waitingForConnections: [CheckedContinuation<Void, Never>] = []
    }

    let configuration: Configuration
    private let registry: ExportRegistry
    private let exports: [Export]
    private let budget: MemoryBudget
    private let journal: Journal
    private let group: any EventLoopGroup
    private let state = Mutex(State())

    /// - Throws: `.invalidExport` for two exports of one name, a default export that does not exist, a name or size out of range.
    public init(exports: [Export], configuration: Configuration, logger: Logger) throws(ServerError) {
        self.configuration = configuration
        self.exports = exports
        registry = try ExportRegistry(
            exports, defaultExport: configuration.defaultExport, allowsSeveralClients: configuration.connectionLimit != 1)
        for listener in configuration.listeners {
            if let name = listener.oldstyleExport, registry.find(name) == nil {
                throw ServerError(.invalidExport, "the export '\(name.sanitized())' of an oldstyle listener does not exist")
            }
        }
        budget = MemoryBudget(byteCountLimit: configuration.memoryLimit)
        journal = Journal(logger: logger)
        group = configuration.eventLoopGroup ?? NIOSingletons.posixEventLoopGroup
    }

    /// Where clients find each export, for each listener with an address: NBD URIs. Filled by `start()`.
    public var uris: [String] { state.withLock { $0.uris } }

    /// For tests: what NIO knows of each connection.
    var connectedChannels: [any Channel] { state.withLock { $0.connections.values.map(\.channel) } }

    /// Connections at this moment.
    public var connectionCount: Int { state.withLock { $0.connections.count } }

    // MARK: Start

    /// Opens every listener; when this returns, clients can connect.
    ///
    /// - Throws: `.cannotListen`, naming the address and the reason; then nothing is left open. `.alreadyStarted`.
    public func start() async throws(ServerError) {
        let isFirst = state.withLock { state in
            guard state.phase == .idle else { return false }
            state.phase = .starting
            return true
        }
        guard isFirst else { throw ServerError(.alreadyStarted, "the server was started before") }
        do throws(ServerError) {
            let acceptor = Acceptor(server: self, loop: group.next(), group: group, connectionLimit: configuration.connectionLimit)
            var freePort: Int?
            for listener in configuration.listeners {
                let channels = try await acceptor.open(listener, preferringPort: freePort)
                if case .tcp(_, port: 0) = listener.address { freePort = freePort ?? channels.first?.localAddress?.port }
                let names = listener.oldstyleExport.map { [$0] } ?? registry.all.map(\.description.name)
                state.withLock { state in
                    state.listeners += channels
                    for channel in channels {
                        state.uris += names.compactMap { Self.uri(channel.localAddress, listener: listener, export: $0) }
                    }
                }
            }
        } catch {
            await closeListeners()
            state.withLock { $0.phase = .ended }
            throw error
        }
        let isOver = state.withLock { state in
            if state.phase == .starting { state.phase = .serving }
            // A connected client may be gone by now.
            return state.listeners.isEmpty && state.connections.isEmpty && !configuration.listeners.isEmpty
        }
        if isOver { shutdown() }
    }

    /// nil: nobody can dial the address (an abstract name that was inherited, a socket pair).
    private static func uri(_ address: SocketAddress?, listener: Listener, export: String) -> String? {
        let place: NBDURI.Address
        switch (listener.address, address) {
        case (.unix(let path), _):
            place = .unix(path: path)
        case (_, .unixDomainSocket):
            guard let path = address?.pathname, !path.isEmpty else { return nil }
            place = .unix(path: path)
        default:
            guard let host = address?.ipAddress, let port = address?.port.flatMap(UInt16.init(exactly:)) else { return nil }
            // A listener on all addresses is reached through any of them; this machine's own name for itself is one that always works.
            place = .tcp(host: host == "0.0.0.0" || host == "::" ? "localhost" : host, port: port)
        }
        return NBDURI(place, exportName: export).description
    }

    func cannotAccept(_ error: any Error) { journal.cannotAccept(error) }

    /// Makes a new connection one of ours. On the connection's loop.
    func adopt(_ channel: any Channel, listener: Listener) throws {
        let environment = ConnectionEnvironment(
            registry: registry, configuration: configuration, budget: budget, journal: journal,
            attachmentChanged: { [self] in attachmentChanged($0) })
        let id = state.withLock { state in
            defer { state.nextConnection += 1 }
            return state.nextConnection
        }
        let identity = ConnectionIdentity(id: id, peer: channel.remoteAddress.map(Self.describe) ?? "local")
        let handler = ConnectionHandler(identity: identity, environment: environment, listener: listener, loop: channel.eventLoop)
        let bound = NIOLoopBound(handler, eventLoop: channel.eventLoop)
        let isDraining = state.withLock { state in
            state.connections[id] = Connection(channel: channel, handler: bound)
            return state.phase == .draining || state.phase == .ended
        }
        channel.closeFuture.whenComplete { [self] _ in
            let (waiting, isOver) = state.withLock { state in
                state.connections[id] = nil
                guard state.connections.isEmpty else { return ([CheckedContinuation<Void, Never>](), false) }
                defer { state.waitingForConnections = [] }
                // Without a listening socket nobody can come after the last client (`.connected`).
                return (state.waitingForConnections, state.listeners.isEmpty && state.phase == .serving)
            }
            for continuation in waiting { continuation.resume() }
            if isOver { shutdown() }
        }
        try channel.pipeline.syncOperations.addHandler(handler)
        if isDraining { channel.close(promise: nil) }
    }

    /// An address for logs.
    private static func describe(_ address: SocketAddress) -> String {
        switch address {
        case .unixDomainSocket: "unix"
        default: "\(address.ipAddress ?? "?"):\(address.port ?? 0)"
        }
    }

    private func attachmentChanged(_ isAttached: Bool) {
        let isLast = state.withLock { state in
            state.attachedCount += isAttached ? 1 : -1
            return !isAttached && state.attachedCount == 0
        }
        if isLast, configuration.stopsAfterLastClient { shutdown() }
    }

    // MARK: Run and stop

    /// Serves until the task is cancelled, ServiceLifecycle asks for a graceful shutdown, `shutdown()` is called, or the last client has
    /// left a server that `stopsAfterLastClient`. Starts the server if need be. Returns when all connections are closed and all devices
    /// are flushed and closed.
    public func run() async throws {
        if state.withLock({ $0.phase == .idle }) { try await start() }
        await withTaskCancellationOrGracefulShutdownHandler {
            await withCheckedContinuation { continuation in
                let isOver = state.withLock { state in
                    if state.phase == .draining || state.phase == .ended { return true }
                    state.waitingForDrain.append(continuation)
                    return false
                }
                if isOver { continuation.resume() }
            }
        } onCancelOrGracefulShutdown: { [self] in
            shutdown()
        }
        await drain()
        await closeDevices()
        state.withLock { $0.phase = .ended }
    }

    /// Begins the end: `run()` then drains and returns. May be called from anywhere, more than once.
    public func shutdown() {
        let waiting = state.withLock { state in
            guard state.phase != .ended else { return [CheckedContinuation<Void, Never>]() }
            state.phase = .draining
            defer { state.waitingForDrain = [] }
            return state.waitingForDrain
        }
        for continuation in waiting { continuation.resume() }
    }

    private func drain() async {
        await closeListeners()
        onEachConnection { $0.drain() }
        let deadline = group.any().scheduleTask(in: TimeAmount(configuration.drainLimit)) { [self] in
            onEachConnection { $0.cut() }
        }
        await withCheckedContinuation { continuation in
            let isEmpty = state.withLock { state in
                if state.connections.isEmpty { return true }
                state.waitingForConnections.append(continuation)
                return false
            }
            if isEmpty { continuation.resume() }
        }
        deadline.cancel()
    }

    /// Each on its own loop.
    private func onEachConnection(_ act: @escaping @Sendable (ConnectionHandler) -> Void) {
        for connection in state.withLock({ Array($0.connections.values) }) {
            let handler = connection.handler
            connection.channel.eventLoop.execute { act(handler.value) }
        }
    }

    private func closeListeners() async {
        let listeners = state.withLock { state in
            defer { state.listeners = [] }
            return state.listeners
        }
        for channel in listeners { try? await channel.close() }
    }

    private func closeDevices() async {
        for export in exports {
            do {
                if !export.device.info.isReadOnly { try await export.device.flush() }
            } catch {
                journal.logger.error("the last flush of export '\(export.name.sanitized())' failed: \(error)")
            }
            await export.device.close()
        }
    }
}
