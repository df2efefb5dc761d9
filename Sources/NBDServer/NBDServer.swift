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

    private struct State {
        var phase = Phase.idle
        var acceptor: Acceptor?
        /// Clients on the way from the acceptor to their event loop. They take places as connections do.
        var arriving: Set<UInt64> = []
        var connections: [UInt64: ConnectionHandle] = [:]
        var places: PlaceBook
        var nextConnection: UInt64 = 1
        var attachedCount = 0
        var uris: [String] = []
        /// Who waits for the end of the phases that lead to `draining` and to no connection.
        var waitingForDrain: [CheckedContinuation<Void, Never>] = []
        var waitingForConnections: [CheckedContinuation<Void, Never>] = []

        var placesTaken: Int { arriving.count + connections.count }
        var isDraining: Bool { phase == .draining || phase == .ended }
    }

    let configuration: Configuration
    let registry: ExportRegistry
    private let exports: [Export]
    private let budget: MemoryBudget
    private let journal: Journal
    let group: any EventLoopGroup
    let fastLoops: [FastLoop]
    private let state: Mutex<State>

    /// - Throws: `.invalidExport` for two exports of one name, a default export that does not exist, a name or size out of range.
    public init(exports: [Export], configuration: Configuration, logger: Logger) throws(ServerError) {
        self.configuration = configuration
        self.exports = exports
        registry = try ExportRegistry(
            exports, defaultExport: configuration.defaultExport, allowsSeveralClients: configuration.connectionLimit != 1)
        if configuration.tls == nil, let export = exports.first(where: \.requiresTLS) {
            throw ServerError(.invalidExport, "export '\(export.name.sanitized())' requires TLS, for which there are no credentials")
        }
        for listener in configuration.listeners {
            guard let name = listener.oldstyleExport else { continue }
            guard let export = registry.find(name) else {
                throw ServerError(.invalidExport, "the export '\(name.sanitized())' of an oldstyle listener does not exist")
            }
            guard configuration.tlsPolicy != .required, !export.description.requiresTLS else {
                throw ServerError(.invalidExport, "the export '\(name.sanitized())' requires TLS, which an oldstyle listener cannot have")
            }
        }
        let journal = Journal(logger: logger)
        self.journal = journal
        budget = MemoryBudget(byteCountLimit: configuration.memoryLimit) { journal.lacksMemory(configuration.memoryLimit) }
        state = Mutex(State(places: PlaceBook(configuration)))
        group = configuration.eventLoopGroup ?? NIOSingletons.posixEventLoopGroup
        fastLoops = configuration.usesFastPath ? FastLoop.all() : []
    }

    /// Where clients find each export, for each listener with an address: NBD URIs. Filled by `start()`.
    public var uris: [String] { state.withLock { $0.uris } }

    /// Connections at this moment.
    public var connectionCount: Int { state.withLock { $0.placesTaken } }

    /// What has happened since the server was made.
    public var counters: Counters { journal.counters }

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
            let opened = try await ListeningSocket.open(configuration.listeners)
            for (listener, sockets) in opened {
                let exports = listener.oldstyleExport.map { [registry.find($0)].compactMap(\.self) } ?? registry.all
                let uris = sockets.flatMap { socket in
                    exports.compactMap { export in
                        let name = listener.oldstyleExport ?? export.description.name
                        let isEncrypted = configuration.tlsPolicy == .required || export.description.requiresTLS
                        return Self.uri(socket.address, listener: listener, export: name, requiresTLS: isEncrypted)
                    }
                }
                state.withLock { $0.uris += uris }
            }
            try prepare(opened)
            try await beginAccepting(opened)
        } catch {
            state.withLock { $0.phase = .ended }
            throw error
        }
        let isOver = state.withLock { state in
            if state.phase == .starting { state.phase = .serving }
            // A connected client may be gone by now.
            return state.acceptor == nil && state.placesTaken == 0 && !configuration.listeners.isEmpty
        }
        if isOver { shutdown() }
    }

    /// Lets the embedder have its moment; closes everything when it does not go well.
    private func prepare(_ opened: [(listener: Listener, sockets: [ListeningSocket])]) throws(ServerError) {
        guard let willAccept = configuration.willAccept else { return }
        do {
            try willAccept(uris)
        } catch {
            for socket in opened.flatMap(\.sockets) { socket.close() }
            for case .connected(let descriptor) in opened.map(\.listener.address) { ListeningSocket.close(descriptor) }
            throw ServerError(.notPrepared, "\(error)")
        }
    }

    /// nil: nobody can dial the address (an abstract name that was inherited, a socket pair).
    private static func uri(_ address: SocketAddress?, listener: Listener, export: String, requiresTLS: Bool) -> String? {
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
        return NBDURI(place, exportName: export, requiresTLS: requiresTLS).description
    }

    func cannotAccept(_ error: any Error) { journal.cannotAccept(error) }

    /// A place for one more, as far as `connectionLimit` goes.
    var hasPlace: Bool {
        configuration.connectionLimit == 0 || state.withLock { $0.placesTaken < configuration.connectionLimit }
    }

    /// - Returns: false when the server is ending: then the acceptor is the caller's to close.
    func use(_ acceptor: Acceptor) -> Bool {
        state.withLock { state in
            guard !state.isDraining else { return false }
            state.acceptor = acceptor
            return true
        }
    }

    /// Gives a new client its place and its number; `adopt` follows, or `ended`.
    func arrived() -> UInt64 {
        let (id, isFull) = state.withLock { state in
            defer { state.nextConnection += 1 }
            state.arriving.insert(state.nextConnection)
            return (state.nextConnection, state.placesTaken == configuration.connectionLimit)
        }
        if isFull { journal.full(configuration.connectionLimit) }
        return id
    }

    /// Makes a new connection one of ours. On the connection's loop.
    ///
    /// - Parameters:
    ///   - id: what `arrived` gave it.
    ///   - descriptor: the channel's socket, and as long as that is open.
    /// - Throws: `CancellationError` when the server is ending, `ProtocolViolation` for one connection too many of its peer; then the channel is
    ///   the caller's to close.
    func adopt(_ channel: any Channel, id: UInt64, descriptor: CInt, listener: Listener) throws {
        let environment = ConnectionEnvironment(
            registry: registry, configuration: configuration, budget: budget, journal: journal, fastLoops: fastLoops,
            attachmentChanged: { [self] in attachmentChanged($0) }, negotiated: { [self] in negotiated($0.id) },
            moved: { [self] in moved($0, $1) }, ended: { [self] in ended($0.id) })
        let identity = ConnectionIdentity(id: id, peer: channel.remoteAddress.map(Self.describe) ?? "local")
        let peer = PeerIdentity(of: descriptor, address: channel.remoteAddress)
        let handler = ConnectionHandler(
            identity: identity, peer: peer, environment: environment, listener: listener, descriptor: descriptor, loop: channel.eventLoop)
        let bound = LoopBound(handler, handler.executor)
        let handle = ConnectionHandle(
            drain: { bound.execute { $0.drain() } }, cut: { bound.execute { $0.cut() } }, crowdOut: { bound.execute { $0.crowdOut() } })
        let (verdict, victim) = try state.withLock { state in
            guard !state.isDraining else { throw CancellationError() }
            let verdict = state.places.enter(id, PlaceBook.Key(peer))
            guard case .welcome(let victim) = verdict else { return (verdict, nil as ConnectionHandle?) }
            state.arriving.remove(id)
            state.connections[id] = handle
            return (verdict, victim.flatMap { state.connections[$0] })
        }
        guard verdict != .refused else {
            journal.violated(identity, .tooManyConnections)
            throw ProtocolViolation.tooManyConnections
        }
        victim?.crowdOut()
        // A connection that has moved lives on without its channel.
        channel.closeFuture.whenComplete { [self] _ in if !bound.value.hasMoved { ended(id) } }
        try channel.pipeline.syncOperations.addHandler(handler)
    }

    private func negotiated(_ id: UInt64) { state.withLock { $0.places.negotiated(id) } }

    /// A connection has another handle from now on. Returns whether it should drain at once.
    private func moved(_ identity: ConnectionIdentity, _ handle: ConnectionHandle) -> Bool {
        state.withLock { state in
            state.connections[identity.id] = handle
            return state.isDraining
        }
    }

    /// A connection is over, or never was one: its place is free. May be said more than once.
    func ended(_ id: UInt64) {
        let (acceptor, waiting, isOver) = state.withLock { state -> (Acceptor?, [CheckedContinuation<Void, Never>], Bool) in
            state.places.leave(id)
            guard state.arriving.remove(id) != nil || state.connections.removeValue(forKey: id) != nil else { return (nil, [], false) }
            let wasFull = state.placesTaken + 1 == configuration.connectionLimit
            let acceptor = wasFull ? state.acceptor : nil
            guard state.placesTaken == 0 else { return (acceptor, [], false) }
            defer { state.waitingForConnections = [] }
            // Without a listening socket nobody can come after the last client (`.connected`).
            return (acceptor, state.waitingForConnections, state.acceptor == nil && state.phase == .serving)
        }
        acceptor?.wake()
        for continuation in waiting { continuation.resume() }
        if isOver { shutdown() }
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
        await state.withLock { $0.acceptor.take() }?.close()
        for connection in connections { connection.drain() }
        let deadline = group.any().scheduleTask(in: TimeAmount(configuration.drainLimit)) { [self] in
            for connection in connections { connection.cut() }
        }
        await withCheckedContinuation { continuation in
            let isEmpty = state.withLock { state in
                if state.placesTaken == 0 { return true }
                state.waitingForConnections.append(continuation)
                return false
            }
            if isEmpty { continuation.resume() }
        }
        deadline.cancel()
    }

    private var connections: [ConnectionHandle] { state.withLock { Array($0.connections.values) } }

    private func closeDevices() async {
        for export in exports {
            await registry.find(export.name)?.gate.close()
            do {
                if !export.device.info.isReadOnly { try await export.device.flush() }
            } catch {
                journal.logger.error("the last flush of export '\(export.name.sanitized())' failed: \(error)")
            }
            await export.device.close()
        }
    }
}
