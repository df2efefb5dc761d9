internal import Synchronization

/// A lock for many sharers or one owner whose waiters keep no thread. First come, first served.
final class WriteGate: Sendable {
    private struct Waiter {
        let isAlone: Bool
        let continuation: CheckedContinuation<Void, Never>
    }

    private struct State {
        var sharerCount = 0
        var isOwned = false
        var waiters: [Waiter] = []

        mutating func enter(alone: Bool) -> Bool {
            guard !isOwned, !alone || sharerCount == 0 else { return false }
            if alone { isOwned = true } else { sharerCount += 1 }
            return true
        }
    }

    private let state = Mutex(State())

    /// Returns when nobody is inside whom this excludes. Every `enter` has its `leave`.
    func enter(alone: Bool) async {
        if state.withLock({ $0.waiters.isEmpty && $0.enter(alone: alone) }) { return }
        await withCheckedContinuation { continuation in
            let isInside = state.withLock { state in
                if state.waiters.isEmpty, state.enter(alone: alone) { return true }
                state.waiters.append(Waiter(isAlone: alone, continuation: continuation))
                return false
            }
            if isInside { continuation.resume() }
        }
    }

    func leave() {
        let admitted = state.withLock { state -> [Waiter] in
            if state.isOwned { state.isOwned = false } else { state.sharerCount -= 1 }
            var count = 0
            while count < state.waiters.count, state.enter(alone: state.waiters[count].isAlone) { count += 1 }
            guard count > 0 else { return [] }
            defer { state.waiters.removeFirst(count) }
            return Array(state.waiters.prefix(count))
        }
        for waiter in admitted { waiter.continuation.resume() }
    }
}
