import NIOCore
import NIOPosix
import Synchronization

/// Lets clients in: one thread waits at all listening sockets of a server and takes one client after the other, while there are places.
///
/// At the limit it waits at none of them, so that new clients stay in the backlog (S-SRV-04), until `wake` says that somebody has left.
final class Acceptor: Sendable {
    struct Door: Sendable {
        let listener: Listener
        let socket: ListeningSocket
    }

    /// Who gets the clients.
    struct Host: Sendable {
        /// Whether there is a place for one more.
        var hasPlace: @Sendable () -> Bool
        /// Takes a client over, at once: whether there is a place for the next one is asked right after.
        var receive: @Sendable (CInt, Listener) -> Void
        /// Told each time the system refuses.
        var cannotAccept: @Sendable (IOError) -> Void
    }

    /// After a refusal, for want of descriptors or memory, the listener tries again after so long: what is lacking will hardly be there
    /// before, and the client that waits would keep this thread running.
    static let pause = Duration.seconds(1)

    private struct State {
        var isStopping = false
        var isOver = false
        var waiting: [CheckedContinuation<Void, Never>] = []
    }

    private let doors: [Door]
    private let host: Host
    private let accept: @Sendable (ListeningSocket) -> ListeningSocket.Answer
    private let waiter: SocketWaiter
    private let threads = NIOThreadPool(numberOfThreads: 1)
    private let state = Mutex(State())

    /// Begins to let clients in; `close` must follow.
    ///
    /// - Parameter accept: another one is for tests.
    /// - Throws: for want of descriptors; then the sockets are still the caller's to close.
    init(
        _ doors: [Door], host: Host,
        accept: @escaping @Sendable (ListeningSocket) -> ListeningSocket.Answer = { $0.accept() }
    ) throws(IOError) {
        self.doors = doors
        self.host = host
        self.accept = accept
        waiter = try SocketWaiter()
        threads.start()
        threads.submit { [self] _ in run() }
    }

    /// There may be a place again.
    func wake() { waiter.wake() }

    /// Turns away who waits. When this returns, nobody is let in any more, all sockets are closed and the thread is gone.
    func close() async {
        // The end of the threads alone would not do: work that they have not begun is done elsewhere and waited for by nobody.
        await withCheckedContinuation { continuation in
            let isOver = state.withLock { state in
                state.isStopping = true
                if !state.isOver { state.waiting.append(continuation) }
                return state.isOver
            }
            if isOver { continuation.resume() }
            waiter.wake()
        }
        try? await threads.shutdownGracefully()
    }

    private func run() {
        var resting: [ContinuousClock.Instant?] = Array(repeating: nil, count: doors.count)
        // Who is asked first: with few places, nobody else would be asked for long.
        var first = 0
        while !state.withLock(\.isStopping) {
            let now = ContinuousClock.now
            for index in doors.indices { if let end = resting[index], end <= now { resting[index] = nil } }
            let mayEnter = host.hasPlace()
            let ready = waiter.wait(
                for: doors.indices.map { mayEnter && resting[$0] == nil ? doors[$0].socket.descriptor : nil },
                atMost: mayEnter ? resting.compactMap { $0 }.min().map { $0 - now } : nil)
            for index in ready.filter({ $0 >= first }) + ready.filter({ $0 < first }) where host.hasPlace() {
                first = (index + 1) % doors.count
                switch accept(doors[index].socket) {
                case .client(let descriptor): host.receive(descriptor, doors[index].listener)
                case .nobody: break
                case .refused(let error):
                    host.cannotAccept(error)
                    resting[index] = .now + Self.pause
                }
            }
        }
        for door in doors { door.socket.close() }
        let waiting = state.withLock { state in
            state.isOver = true
            return state.waiting
        }
        for continuation in waiting { continuation.resume() }
    }
}
