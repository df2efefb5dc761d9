import Synchronization
import Testing

@testable import HostIO

// S-BLK-10: flushes coalesce, and each covers what came before it
@Suite(.timeLimit(.minutes(1))) struct `Flushes of one file` {
    @Test func `that come while one runs share the next`() async {
        let turns = FlushTurns()
        let disk = Disk()
        let first = Task { await turns.run(disk.flush) }
        await disk.waitForStart(1)
        let others = (0..<50).map { _ in Task { await turns.run(disk.flush) } }
        await turns.waitForWaiters(50)
        disk.finish(with: 7)
        #expect(await first.value == 7)
        await disk.waitForStart(2)
        disk.finish(with: -5)
        for other in others { #expect(await other.value == -5) }
        #expect(disk.startCount == 2)
        // Nothing is left behind: the next one runs by itself.
        let last = Task { await turns.run(disk.flush) }
        await disk.waitForStart(3)
        disk.finish(with: 0)
        #expect(await last.value == 0)
    }

    @Test func `never begin before what they are to cover`() async {
        let turns = FlushTurns()
        let counts = Counts()
        await withTaskGroup(of: Bool.self) { group in
            for _ in 0..<500 {
                group.addTask {
                    let mine = counts.written.add(1, ordering: .sequentiallyConsistent).newValue
                    let covered = await turns.run {
                        counts.runs.add(1, ordering: .relaxed)
                        let others = counts.atOnce.add(1, ordering: .relaxed).oldValue
                        let now = counts.written.load(ordering: .sequentiallyConsistent)
                        await Task.yield()
                        counts.atOnce.subtract(1, ordering: .relaxed)
                        return others == 0 ? now : -1
                    }
                    return covered >= mine
                }
            }
            for await isCovered in group { #expect(isCovered) }
        }
        #expect(counts.runs.load(ordering: .relaxed) <= 500)
    }
}

extension FlushTurns {
    fileprivate func waitForWaiters(_ count: Int) async {
        while waiterCount < count { await Task.yield() }
    }
}

private final class Counts: Sendable {
    let written = Atomic<Int>(0)
    let runs = Atomic<Int>(0)
    let atOnce = Atomic<Int>(0)
}

/// Flushes that end when the test says so.
private final class Disk: Sendable {
    private struct State {
        var startCount = 0
        var running: CheckedContinuation<Int, Never>?
    }

    private let state = Mutex(State())

    var startCount: Int { state.withLock { $0.startCount } }

    func flush() async -> Int {
        await withCheckedContinuation { continuation in
            state.withLock { state in
                precondition(state.running == nil, "two flushes at once")
                state.startCount += 1
                state.running = continuation
            }
        }
    }

    func waitForStart(_ count: Int) async {
        while startCount < count { await Task.yield() }
    }

    func finish(with result: Int) {
        state.withLock { state in
            defer { state.running = nil }
            return state.running
        }?.resume(returning: result)
    }
}
