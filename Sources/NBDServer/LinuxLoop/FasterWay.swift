/// Which of two ways to send long pieces is faster on a loop, at this time, for these clients: by reference, copied by the receiver, or copied by
/// us from a mapping. A lean client copies as fast as we do, a busy one better gets what is copied already. Nobody can tell beforehand: that depends
/// on who has time, and on what else the cores have to do. So it is measured: bytes a second of short spells, now and then of one the other way.
struct FasterWay {
    private(set) var isFirst = true
    /// Bytes per second, smoothed; 0 where nothing is known.
    private var rates: (first: Double, second: Double) = (0, 0)
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
    ///   - moved: bytes, long pieces among them.
    ///   - now: nanoseconds; asked for at the end of a spell only.
    mutating func note(moved: Int, now: @autoclosure () -> UInt64) {
        byteCount += moved
        guard byteCount >= Self.spellByteCount else { return }
        let now = now()
        let duration = now &- spellStart
        if duration > 0, duration < Self.spellLimit {
            let rate = Double(byteCount) / Double(duration)
            if isFirst { smooth(&rates.first, rate) } else { smooth(&rates.second, rate) }
            spellCount += 1
        }
        spellStart = now
        byteCount = 0
        if spellCount < Self.firstSpellCount {
            isFirst = spellCount.isMultiple(of: 2)
        } else {
            let isFar = min(rates.first, rates.second) < 0.7 * max(rates.first, rates.second)
            let isTrial = spellCount.isMultiple(of: isFar ? Self.trialPeriod.far : Self.trialPeriod.near)
            isFirst = (rates.first >= rates.second) != isTrial
        }
    }

    private func smooth(_ value: inout Double, _ rate: Double) {
        value = value == 0 ? rate : value * 0.75 + rate * 0.25
    }
}
