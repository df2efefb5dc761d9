internal import CHostIO
internal import SystemPackage

/// The calls that a ring is busy with, for the loop that owns it. Each call in flight has a slot, and the kernel knows it by the slot's
/// number; the others wait in the order they came.
struct RingSlots: ~Copyable {
    enum Outcome: Sendable {
        /// Bytes read, or 0, or a negated errno.
        case finished(Int)
        /// The rest has to be done without the ring.
        case unfinished(RingCall)
    }

    struct Pending: Sendable {
        var call: RingCall
        /// Called on the loop, once.
        let done: @Sendable (Outcome) -> Void
    }

    /// Whose calls have ended, and how.
    typealias Ended = [(done: @Sendable (Outcome) -> Void, outcome: Outcome)]

    private var ring: Ring
    private var slots: [Pending?]
    private var freeSlots: [Int]
    /// Called by the loop, when nothing else is under way here: they may add calls.
    private var ended: Ended = []
    /// The kernel is told of so many at once: a disk that gets all of a turn at once begins late, and they all end together (the host of a virtual
    /// machine, 16 at once: 0.85 of the speed).
    private static let submissionLimit = 2
    /// First come, first served, from `waitingStart` on.
    private var waiting: [Pending] = []
    private var waitingStart = 0

    /// - Parameter slotCount: not above the entries of the ring.
    init(_ ring: consuming Ring, slotCount: Int) {
        self.ring = ring
        slots = Array(repeating: nil, count: slotCount)
        freeSlots = Array((0..<slotCount).reversed())
    }

    mutating func add(_ pending: Pending) {
        waiting.append(pending)
        admit()
    }

    var hasCompletion: Bool { ring.hasCompletion }

    /// Calls that have ended, for their ends to be called.
    mutating func takeEnded(into list: inout Ended) {
        guard !ended.isEmpty else { return }
        swap(&list, &ended)
    }

    /// Hands to the kernel what was added since, without waiting.
    mutating func submit() {
        guard ring.unsubmittedCount > 0 else { return }
        let result = ring.submit()
        // Short of memory, most likely: others have threads.
        if result < 0, result != -Errno.interrupted.rawValue { withdraw() }
    }

    /// Ends the calls that the kernel has completed.
    mutating func reap() {
        while let completion = ring.popCompletion() { complete(completion) }
        admit()
    }

    private mutating func admit() {
        guard waitingStart < waiting.count else { return }
        while waitingStart < waiting.count, let slot = freeSlots.popLast() {
            let pending = waiting[waitingStart]
            waitingStart += 1
            slots[slot] = pending
            ring.push(pending.call.submission(userData: UInt64(slot)))
            if ring.unsubmittedCount >= Self.submissionLimit { submit() }
        }
        if waitingStart == waiting.count {
            waiting.removeAll(keepingCapacity: waiting.count <= 1024)
            waitingStart = 0
        }
    }

    private mutating func complete(_ completion: chostio_ring_completion) {
        guard let slot = Int(exactly: completion.user_data), slots.indices.contains(slot), var pending = slots[slot] else { return }
        switch pending.call.completed(completion.result) {
        case .again:
            slots[slot] = pending
            ring.push(pending.call.submission(userData: UInt64(slot)))
        case .finished(let result):
            free(slot)
            ended.append((pending.done, .finished(result)))
        case .elsewhere:
            free(slot)
            ended.append((pending.done, .unfinished(pending.call)))
        }
    }

    /// Takes back what the kernel did not accept.
    private mutating func withdraw() {
        while let userData = ring.takeBack() {
            guard let slot = Int(exactly: userData), slots.indices.contains(slot), let pending = slots[slot] else { continue }
            free(slot)
            ended.append((pending.done, .unfinished(pending.call)))
        }
    }

    private mutating func free(_ slot: Int) {
        slots[slot] = nil
        freeSlots.append(slot)
    }
}
