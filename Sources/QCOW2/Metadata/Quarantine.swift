internal import Synchronization

/// Keeps freed clusters from being used again while somebody may still read or write them by what he looked up before.
///
/// A request takes a *pin* before it looks a cluster up, and gives it back when its I/O is over. A mapper has a `Slot` instead: it is
/// *since* the first thing mapped after the last `released()`. Time is counted in epochs: putting clusters into quarantine begins a new
/// one. A cluster leaves when everybody at work has begun later than it came: whoever began later has looked up the entry that no longer
/// names it.
final class Quarantine: Sendable {
    /// A mapper's mark. 0: nothing of what it said is in use.
    final class Slot: Sendable {
        fileprivate let since = Atomic<UInt64>(0)
        fileprivate let epoch: Clock

        fileprivate init(_ epoch: Clock) { self.epoch = epoch }

        /// Called before each look-up.
        @inline(__always) func enter() {
            guard since.load(ordering: .relaxed) == 0 else { return }
            since.store(epoch.now.load(ordering: .sequentiallyConsistent), ordering: .sequentiallyConsistent)
        }

        @inline(__always) func leave() {
            guard since.load(ordering: .relaxed) != 0 else { return }
            since.store(0, ordering: .sequentiallyConsistent)
        }
    }

    fileprivate final class Clock: Sendable {
        let now = Atomic<UInt64>(1)
    }

    struct Pin: Sendable {
        fileprivate let epoch: UInt64
    }

    private struct WeakSlot {
        weak var slot: Slot?
    }

    private struct State {
        var pins: [UInt64: Int] = [:]
        var slots: [WeakSlot] = []
        /// In the order they came.
        var waiting: [(epoch: UInt64, clusters: Freed)] = []
        var clusterCount: UInt64 = 0
    }

    /// Host clusters whose last reference from a table is gone.
    struct Freed: Equatable, Sendable {
        /// By number.
        var clusters: Range<UInt64>
        /// Their space may be given back to the file below.
        var mayDiscard: Bool
    }

    private let clock = Clock()
    private let state = Mutex(State())

    func makeSlot() -> Slot {
        let slot = Slot(clock)
        state.withLock { state in
            state.slots.removeAll { $0.slot == nil }
            state.slots.append(WeakSlot(slot: slot))
        }
        return slot
    }

    /// Every `pin` has its `unpin`.
    func pin() -> Pin {
        state.withLock { state in
            let epoch = clock.now.load(ordering: .sequentiallyConsistent)
            state.pins[epoch, default: 0] += 1
            return Pin(epoch: epoch)
        }
    }

    func unpin(_ pin: Pin) {
        state.withLock { state in
            let count = (state.pins[pin.epoch] ?? 1) - 1
            state.pins[pin.epoch] = count == 0 ? nil : count
        }
    }

    /// Nothing names `freed` any more, neither in memory nor in the image.
    func enter(_ freed: [Freed]) {
        guard !freed.isEmpty else { return }
        state.withLock { state in
            // Pins are taken under this lock: those with the old epoch may know the clusters, later ones cannot.
            let epoch = clock.now.wrappingAdd(1, ordering: .sequentiallyConsistent).oldValue
            for clusters in freed { state.waiting.append((epoch, clusters)) }
        }
    }

    /// Takes out what nobody can know any more; with `force` everything, when there is nobody left.
    func takeReleased(force: Bool = false) -> [Freed] {
        state.withLock { state in
            guard !state.waiting.isEmpty else { return [] }
            var oldest = state.pins.keys.min() ?? .max
            for weak in state.slots {
                guard let since = weak.slot?.since.load(ordering: .sequentiallyConsistent), since != 0 else { continue }
                oldest = min(oldest, since)
            }
            if force { oldest = .max }
            let count = state.waiting.prefix { $0.epoch < oldest }.count
            guard count > 0 else { return [] }
            defer { state.waiting.removeFirst(count) }
            return state.waiting.prefix(count).map(\.clusters)
        }
    }

    var isEmpty: Bool { state.withLock { $0.waiting.isEmpty } }
}
