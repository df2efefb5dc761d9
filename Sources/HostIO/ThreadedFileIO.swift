internal import CHostIO
internal import Synchronization

/// File calls on the threads of a pool, of which one file takes its share only: a disk that hangs keeps those threads, and the calls on
/// other files find free ones.
///
/// Work starts in the order it came. The queue needs no bound of its own: each item belongs to a request, and those are bounded for each
/// client.
final class ThreadedFileIO: FileIO {
    /// For what belongs to no open file.
    static let shared = ThreadedFileIO()

    private struct State {
        var runningCount = 0
        /// Longer than nothing only when `threadLimit` calls run.
        var waiting: [@Sendable () -> Void] = []
    }

    private let pool: ThreadPool
    private let threadLimit: Int
    private let state = Mutex(State())

    /// - Parameter threadLimit: most threads taken at once, at least 1.
    init(pool: ThreadPool = .shared, threadLimit: Int = 16) {
        precondition(threadLimit > 0)
        self.pool = pool
        self.threadLimit = threadLimit
    }

    func read(_ descriptor: Int32, into memory: BorrowedMemory, at offset: UInt64, isDirect: Bool) async -> Int {
        await call { PositionalIO.read(descriptor, into: memory, at: offset) }
    }

    func write(_ descriptor: Int32, from memory: BorrowedMemory, at offset: UInt64, dsync: Bool, isDirect: Bool) async -> Int {
        await call { PositionalIO.write(descriptor, from: memory, at: offset, dsync: dsync) }
    }

    func datasync(_ descriptor: Int32) async -> Int {
        await call { PositionalIO.retrying { chostio_datasync(descriptor) } }
    }

    func submit(_ work: @escaping @Sendable () -> Void) {
        let mayRun = state.withLock { state in
            guard state.runningCount < threadLimit else {
                state.waiting.append(work)
                return false
            }
            state.runningCount += 1
            return true
        }
        if mayRun { start(work) }
    }

    /// What waits goes to the end of the pool's queue, behind the calls on other files.
    private func start(_ work: @escaping @Sendable () -> Void) {
        pool.submit {
            work()
            let next = self.state.withLock { state -> (@Sendable () -> Void)? in
                if !state.waiting.isEmpty { return state.waiting.removeFirst() }
                state.runningCount -= 1
                return nil
            }
            if let next { self.start(next) }
        }
    }
}
