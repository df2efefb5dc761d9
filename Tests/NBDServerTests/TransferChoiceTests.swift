import Testing

@testable import NBDServer

/// Copies or references: whatever is faster on this machine, at this time, for these clients.
@Suite struct `The way that long pieces leave a loop` {
    /// Sends so many spells, each way at its speed (bytes for each nanosecond); returns how many went by reference.
    private func spells(_ count: Int, _ choice: inout TransferChoice, _ now: inout UInt64, copy: Double, reference: Double) -> Int {
        var referenceCount = 0
        for _ in 0..<count {
            let isByReference = choice.isByReference
            if isByReference { referenceCount += 1 }
            for _ in 0..<8 {
                now += UInt64(Double(TransferChoice.spellByteCount / 8) / (isByReference ? reference : copy))
                choice.note(sent: TransferChoice.spellByteCount / 8, now: now)
            }
        }
        return referenceCount
    }

    @Test func `is the faster one, and the other is tried seldom`() {
        var choice = TransferChoice()
        var now: UInt64 = 1
        _ = spells(20, &choice, &now, copy: 1, reference: 3)
        #expect((960..<1000).contains(spells(1000, &choice, &now, copy: 1, reference: 3)))
        // Much slower: tried less often than what is nearly as fast.
        #expect((900..<960).contains(spells(1000, &choice, &now, copy: 2.5, reference: 3)))
    }

    @Test func `changes when the other becomes faster`() {
        var choice = TransferChoice()
        var now: UInt64 = 1
        _ = spells(200, &choice, &now, copy: 1, reference: 3)
        _ = spells(300, &choice, &now, copy: 3, reference: 1)
        #expect((0..<40).contains(spells(1000, &choice, &now, copy: 3, reference: 1)))
        #expect(!choice.isByReference)
    }

    @Test func `does not change because a client pauses`() {
        var choice = TransferChoice()
        var now: UInt64 = 1
        _ = spells(200, &choice, &now, copy: 1, reference: 1.2)
        for _ in 0..<100 {
            now += 1_000_000_000
            choice.note(sent: TransferChoice.spellByteCount, now: now)
        }
        #expect(spells(160, &choice, &now, copy: 1, reference: 1.2) > 120)
    }

    @Test func `is by reference at first`() {
        #expect(TransferChoice().isByReference)
    }
}
