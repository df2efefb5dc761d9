import Testing

@testable import NBDServer

/// By reference or copied: whatever is faster on this machine, at this time, for these clients.
@Suite struct `The way that long pieces are sent` {
    /// Sends so many spells, each way at its speed (bytes for each nanosecond); returns how many went the first way.
    private func spells(_ count: Int, _ choice: inout FasterWay, _ now: inout UInt64, second: Double, first: Double) -> Int {
        var firstCount = 0
        for _ in 0..<count {
            let isFirst = choice.isFirst
            if isFirst { firstCount += 1 }
            for _ in 0..<8 {
                now += UInt64(Double(FasterWay.spellByteCount / 8) / (isFirst ? first : second))
                choice.note(moved: FasterWay.spellByteCount / 8, now: now)
            }
        }
        return firstCount
    }

    @Test func `is the faster one, and the other is tried seldom`() {
        var choice = FasterWay()
        var now: UInt64 = 1
        _ = spells(20, &choice, &now, second: 1, first: 3)
        #expect((960..<1000).contains(spells(1000, &choice, &now, second: 1, first: 3)))
        // Much slower: tried less often than what is nearly as fast.
        #expect((900..<960).contains(spells(1000, &choice, &now, second: 2.5, first: 3)))
    }

    @Test func `changes when the other becomes faster`() {
        var choice = FasterWay()
        var now: UInt64 = 1
        _ = spells(200, &choice, &now, second: 1, first: 3)
        _ = spells(300, &choice, &now, second: 3, first: 1)
        #expect((0..<40).contains(spells(1000, &choice, &now, second: 3, first: 1)))
        #expect(!choice.isFirst)
    }

    @Test func `does not change because a client pauses`() {
        var choice = FasterWay()
        var now: UInt64 = 1
        _ = spells(200, &choice, &now, second: 1, first: 1.2)
        for _ in 0..<100 {
            now += 1_000_000_000
            choice.note(moved: FasterWay.spellByteCount, now: now)
        }
        #expect(spells(160, &choice, &now, second: 1, first: 1.2) > 120)
    }

    @Test func `is the first one to begin with`() {
        #expect(FasterWay().isFirst)
    }
}
