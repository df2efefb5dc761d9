import Testing

@testable import NBDServer

/// By reference or copied: whatever is faster on this machine, at this time, for these clients.
@Suite struct `The way that long pieces are sent` {
    /// Sends so many MiB, each way at its speed (bytes for each nanosecond); returns the share that went the first way.
    private func send(_ count: Int, _ choice: FasterWay, _ now: inout UInt64, first: Double, second: Double) -> Double {
        var firstCount = 0
        for _ in 0..<count {
            let isFirst = choice.isFirst
            if isFirst { firstCount += 1 }
            now += UInt64(Double(1 << 20) / (isFirst ? first : second))
            choice.note(moved: 1 << 20, now: now)
        }
        return Double(firstCount) / Double(count)
    }

    @Test func `is the faster one, and the other is tried seldom`() {
        let choice = FasterWay()
        var now: UInt64 = 1
        _ = send(2000, choice, &now, first: 3, second: 1)
        #expect((0.97..<1).contains(send(100_000, choice, &now, first: 3, second: 1)))
        // Nearly as fast: tried more often.
        #expect((0.88..<0.95).contains(send(100_000, choice, &now, first: 3, second: 2.8)))
    }

    @Test func `is known after one spell of each`() {
        let choice = FasterWay()
        var now: UInt64 = 1
        let shareOfFirst = send(1000, choice, &now, first: 1, second: 2)
        #expect(!choice.isFirst && shareOfFirst < 0.12)
    }

    @Test func `is not judged by what waited in the sockets when it changed`() {
        let choice = FasterWay()
        var now: UInt64 = 1
        // The first way, until its spell has ended.
        while choice.isFirst { _ = send(1, choice, &now, first: 1, second: 2) }
        // What comes next is slow only because of what was sent before.
        now += 100_000_000
        _ = send(FasterWay.settlingByteCount >> 20, choice, &now, first: 1, second: 0.1)
        _ = send(FasterWay.spellByteCount >> 20, choice, &now, first: 1, second: 2)
        #expect(!choice.isFirst)
    }

    @Test func `changes when the other becomes faster`() {
        let choice = FasterWay()
        var now: UInt64 = 1
        _ = send(10_000, choice, &now, first: 3, second: 1)
        _ = send(30_000, choice, &now, first: 1, second: 3)
        #expect((0..<0.04).contains(send(100_000, choice, &now, first: 1, second: 3)))
    }

    @Test func `does not change because a client pauses`() {
        let choice = FasterWay()
        var now: UInt64 = 1
        _ = send(10_000, choice, &now, first: 1.2, second: 1)
        for _ in 0..<100 {
            now += 1_000_000_000
            choice.note(moved: FasterWay.spellByteCount, now: now)
        }
        #expect(choice.isFirst)
        #expect(send(10_000, choice, &now, first: 1.2, second: 1) > 0.85)
    }

    @Test func `is the first one when the client paused in a trial`() {
        let choice = FasterWay()
        var now: UInt64 = 1
        while choice.isFirst { _ = send(1, choice, &now, first: 1, second: 2) }
        for _ in 0..<200 {
            now += 20_000_000
            choice.note(moved: 1 << 20, now: now)
        }
        #expect(choice.isFirst)
    }

    @Test func `is the first one to begin with`() {
        #expect(FasterWay().isFirst)
    }
}
