internal import CHostIO
internal import SystemPackage

#if canImport(Darwin)
internal import Darwin
#elseif canImport(Musl)
internal import Musl
#else
internal import Glibc
#endif

/// The work of the ring thread, which alone touches the ring.
///
/// Each call in flight has a slot, and the kernel knows it by the slot's number. There is an entry for every slot and one for the read of
/// `event` that wakes the thread, so neither queue can overflow.
// SAFETY: `eventCount` is allocated and initialised once, and outlives every read into it: freed only when no thread could be started.
@safe struct RingLoop: ~Copyable {
    private var ring: Ring
    private let event: Int32
    /// Where the read of `event` puts its count.
    private let eventCount: UnsafeMutablePointer<UInt64>
    private var isEventRead = false

    private var slots: [SharedRing.Pending?]
    private var freeSlots: [Int]
    /// First come, first served, from `waitingStart` on.
    private var waiting: [SharedRing.Pending] = []
    private var waitingStart = 0

    private static let eventUserData = UInt64.max

    init(_ ring: consuming Ring, event: Int32, entryCount: Int) {
        self.ring = ring
        self.event = event
        unsafe eventCount = .allocate(capacity: 1)
        unsafe eventCount.initialize(to: 0)
        slots = Array(repeating: nil, count: entryCount - 1)
        freeSlots = Array((0..<entryCount - 1).reversed())
    }

    deinit {
        unsafe eventCount.deallocate()
    }

    mutating func run(for owner: SharedRing) -> Never {
        while true {
            readEvent()
            admit()
            // With a free slot, everything that waited has been admitted.
            if !freeSlots.isEmpty, owner.takeOrSleep(&waiting) { continue }
            // Something will end the wait: the read of the event, or a call in flight when all slots are taken.
            let result = ring.enter()
            owner.isAwake()
            while let completion = ring.popCompletion() { complete(completion) }
            if result < 0, result != -Errno.interrupted.rawValue {
                // Short of memory, most likely. Others have threads; and nothing says when it is over.
                withdraw()
                usleep(1000)
            }
        }
    }

    private mutating func readEvent() {
        guard !isEventRead else { return }
        isEventRead = true
        var submission = chostio_ring_submission()
        submission.operation = UInt8(CHOSTIO_RING_READ)
        submission.fd = event
        submission.address = UInt64(UInt(bitPattern: unsafe eventCount))
        submission.count = 8
        submission.user_data = Self.eventUserData
        ring.push(submission)
    }

    private mutating func admit() {
        while waitingStart < waiting.count, let slot = freeSlots.popLast() {
            let pending = waiting[waitingStart]
            waitingStart += 1
            slots[slot] = pending
            ring.push(pending.call.submission(userData: UInt64(slot)))
        }
        if waitingStart == waiting.count {
            waiting.removeAll(keepingCapacity: waiting.count <= 1024)
            waitingStart = 0
        }
    }

    private mutating func complete(_ completion: chostio_ring_completion) {
        guard completion.user_data != Self.eventUserData else {
            isEventRead = false
            return
        }
        guard let slot = Int(exactly: completion.user_data), slots.indices.contains(slot), var pending = slots[slot] else { return }
        switch pending.call.completed(completion.result) {
        case .again:
            slots[slot] = pending
            ring.push(pending.call.submission(userData: UInt64(slot)))
        case .finished(let result):
            free(slot)
            pending.continuation.resume(returning: .finished(result))
        case .elsewhere:
            free(slot)
            pending.continuation.resume(returning: .unfinished(pending.call))
        }
    }

    /// Takes back what the kernel did not accept.
    private mutating func withdraw() {
        while let userData = ring.takeBack() {
            if userData == Self.eventUserData {
                isEventRead = false
            } else if let pending = slots[Int(userData)] {
                free(Int(userData))
                pending.continuation.resume(returning: .unfinished(pending.call))
            }
        }
    }

    private mutating func free(_ slot: Int) {
        slots[slot] = nil
        freeSlots.append(slot)
    }
}
