internal import Synchronization

/// One holder at a time, in the order they came. Waiting keeps no thread; holding it across an `await` is what it is for.
final class AsyncLock: Sendable {
    fileprivate struct State {
        var isHeld = false
        var waiters: [CheckedContinuation<Void, Never>] = []
        /// Those before this index have been let in.
        var firstWaiter = 0
    }

    private let state = Mutex(State())

    /// Returns when the lock is the caller's. Every `acquire` has its `release`.
    func acquire() async {
        if state.withLock({ $0.take() }) { return }
        await withCheckedContinuation { continuation in
            let isTaken = state.withLock { state in
                if state.take() { return true }
                state.waiters.append(continuation)
                return false
            }
            if isTaken { continuation.resume() }
        }
    }

    func release() {
        // The lock is handed over: who waits first has it before anybody else can ask.
        state.withLock { $0.next() }?.resume()
    }

    /// Runs `body` alone.
    func withLock<Result, Failure: Error>(_ body: () async throws(Failure) -> Result) async throws(Failure) -> Result {
        await acquire()
        defer { release() }
        return try await body()
    }
}

extension AsyncLock.State {
    mutating func take() -> Bool {
        guard !isHeld else { return false }
        isHeld = true
        return true
    }

    mutating func next() -> CheckedContinuation<Void, Never>? {
        guard firstWaiter < waiters.count else {
            isHeld = false
            return nil
        }
        let waiter = waiters[firstWaiter]
        firstWaiter += 1
        if firstWaiter == waiters.count {
            waiters.removeAll(keepingCapacity: true)
            firstWaiter = 0
        }
        return waiter
    }
}
