internal import Synchronization

/// Lets flushes of one file that come while another runs share the next one, as the reference does (S-BLK-10).
///
///     A ──── flush ────┐
///         B ──── waits ├──── flush ────┐    B's covers C: both came before it began
///            C ─ waits ┘               ┘
///
/// The running one does not cover B: what B wants durable may have been written after it began. However many clients flush, one file
/// keeps one thread busy.
final class FlushTurns: Sendable {
    private enum Turn {
        /// Flush, and tell these.
        case lead([CheckedContinuation<Turn, Never>])
        /// Somebody did.
        case over(Int)
    }

    private struct State {
        var isRunning = false
        var waiters: [CheckedContinuation<Turn, Never>] = []
    }

    private let state = Mutex(State())

    /// Flushes that wait for a run to end.
    var waiterCount: Int { state.withLock { $0.waiters.count } }

    /// Returns the result of a run of `flush` that began after this call.
    func run(_ flush: () async -> Int) async -> Int {
        let isFirst = state.withLock { state in
            defer { state.isRunning = true }
            return !state.isRunning
        }
        switch isFirst ? .lead([]) : await wait() {
        case .over(let result):
            return result
        case .lead(let followers):
            let result = await flush()
            // Before the next run: its leader may be the task of a client that has to be woken first.
            for follower in followers { follower.resume(returning: .over(result)) }
            passOn()
            return result
        }
    }

    private func wait() async -> Turn {
        await withCheckedContinuation { continuation in
            let isFree = state.withLock { state in
                // Looked at again: the run may have ended in between.
                if state.isRunning { state.waiters.append(continuation) }
                defer { state.isRunning = true }
                return !state.isRunning
            }
            if isFree { continuation.resume(returning: .lead([])) }
        }
    }

    /// The first who waits flushes for all who wait by now.
    private func passOn() {
        let waiters = state.withLock { state in
            let waiters = state.waiters
            state.waiters = []
            state.isRunning = !waiters.isEmpty
            return waiters
        }
        waiters.first?.resume(returning: .lead(Array(waiters.dropFirst())))
    }
}
