/// How the long pieces of files leave a loop that may choose: copied by us from the mapping, or by reference, copied by the receiver.
///
/// Which is faster depends on who has time: a lean client copies as fast as we do, a busy one better gets what is copied already, and with
/// several of each nobody can tell. So it is measured: bytes for each second of short spells, now and then of one the other way.
struct TransferChoice {
    private(set) var isByReference = true
    /// Bytes per second, smoothed; 0 where nothing is known.
    private var rates: (copy: Double, reference: Double) = (0, 0)
    private var spellCount: UInt64 = 0
    private var spellStart: UInt64 = 0
    private var byteCount = 0

    static let spellByteCount = 8 << 20
    /// A spell in which the client took its time says nothing. Nanoseconds.
    private static let spellLimit: UInt64 = 100_000_000
    /// At first both ways have so many spells, in turn.
    private static let firstSpellCount: UInt64 = 6
    /// The other way is tried so often; what lately was much slower less often, for that costs.
    private static let trialPeriod: (near: UInt64, far: UInt64) = (16, 64)

    /// - Parameters:
    ///   - sent: bytes that have left, long pieces among them.
    ///   - now: nanoseconds; asked for at the end of a spell only.
    mutating func note(sent: Int, now: @autoclosure () -> UInt64) {
        byteCount += sent
        guard byteCount >= Self.spellByteCount else { return }
        let now = now()
        let duration = now &- spellStart
        if duration > 0, duration < Self.spellLimit {
            let rate = Double(byteCount) / Double(duration)
            if isByReference { smooth(&rates.reference, rate) } else { smooth(&rates.copy, rate) }
            spellCount += 1
        }
        spellStart = now
        byteCount = 0
        if spellCount < Self.firstSpellCount {
            isByReference = spellCount.isMultiple(of: 2)
        } else {
            let isFar = min(rates.reference, rates.copy) < 0.7 * max(rates.reference, rates.copy)
            let isTrial = spellCount.isMultiple(of: isFar ? Self.trialPeriod.far : Self.trialPeriod.near)
            isByReference = (rates.reference >= rates.copy) != isTrial
        }
    }

    private func smooth(_ value: inout Double, _ rate: Double) {
        value = value == 0 ? rate : value * 0.75 + rate * 0.25
    }
}
