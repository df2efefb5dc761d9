import Block
import NBDEngine
import Synchronization

/// Lets an export's connections be paused together: the export as a `RequestSource` (REFERENCE section 11).
final class ExportGate: RequestSource {
    /// One connection in transmission. May be called from anywhere; all of it happens on the connection's loop, soon.
    struct Member: Sendable {
        /// Calls back when nothing of the connection touches the device.
        let pause: @Sendable (@escaping @Sendable () -> Void) -> Void
        let resume: @Sendable () -> Void
        /// Moves the paused connection to the loop of this number, and calls back with whether it has moved.
        let move: @Sendable (Int, @escaping @Sendable (Bool) -> Void) -> Void
    }

    private struct State {
        var pauseCount = 0
        var members: [UInt64: Member] = [:]
        var nextID: UInt64 = 1
        /// Runs while the device is told that nobody uses it.
        var settling: Task<Void, Never>?
        /// That became true again meanwhile.
        var mustSettleAgain = false
        var isClosed = false
    }

    let writeTurns = WriteTurns()
    private let device: any BlockDevice
    private let state = Mutex(State())

    /// - Parameter device: told when nobody uses it (`BlockDevice.settle`).
    init(_ device: any BlockDevice) { self.device = device }

    /// A connection begins. When `isPaused` is true, it begins with a pause.
    func join(_ member: Member) -> (id: UInt64, isPaused: Bool) {
        state.withLock { state in
            defer { state.nextID += 1 }
            state.members[state.nextID] = member
            return (state.nextID, state.pauseCount > 0)
        }
    }

    /// Nothing of a connection is left, and nothing that it began. After the last one the device may settle.
    func leave(_ id: UInt64) {
        state.withLock { state in
            state.members[id] = nil
            guard state.members.isEmpty, !state.isClosed else { return }
            guard state.settling == nil else { return state.mustSettleAgain = true }
            state.settling = Task {
                repeat { await device.settle() } while hasToSettleAgain()
            }
        }
    }

    private func hasToSettleAgain() -> Bool {
        state.withLock { state in
            defer { state.mustSettleAgain = false }
            if !state.mustSettleAgain { state.settling = nil }
            return state.mustSettleAgain
        }
    }

    /// Returns when the device is left alone for good.
    func close() async {
        let settling = state.withLock { state in
            state.isClosed = true
            return state.settling
        }
        await settling?.value
    }

    /// What a connection asks that is told to go on: somebody else may have paused meanwhile.
    var isPaused: Bool { state.withLock { $0.pauseCount > 0 } }

    func pause() async {
        let members = state.withLock { state in
            state.pauseCount += 1
            return Array(state.members.values)
        }
        await all(members) { member, done in member.pause(done) }
    }

    func resume() {
        let members = state.withLock { state -> [Member] in
            state.pauseCount -= 1
            return state.pauseCount == 0 ? Array(state.members.values) : []
        }
        for member in members { member.resume() }
    }

    /// - Precondition: paused.
    /// - Returns: how many connections have moved.
    func move(toLoop number: Int) async -> Int {
        let count = Countdown(0)
        await all(state.withLock { Array($0.members.values) }) { member, done in
            member.move(number) { hasMoved in
                if hasMoved { count.add(1) }
                done()
            }
        }
        return count.value
    }

    /// Returns when `done` was called for each.
    private func all(_ members: [Member], _ body: (Member, @escaping @Sendable () -> Void) -> Void) async {
        guard !members.isEmpty else { return }
        await withCheckedContinuation { continuation in
            let left = Countdown(members.count)
            for member in members {
                body(member) { if left.add(-1) == 0 { continuation.resume() } }
            }
        }
    }
}

private final class Countdown: Sendable {
    private let count: Atomic<Int>

    init(_ count: Int) { self.count = Atomic(count) }

    var value: Int { count.load(ordering: .acquiring) }

    @discardableResult
    func add(_ number: Int) -> Int { count.add(number, ordering: .acquiringAndReleasing).newValue }
}
