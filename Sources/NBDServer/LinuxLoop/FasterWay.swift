internal import Synchronization

/// Which of two ways to send long pieces is faster, at this time, for these clients: by reference, copied by the receiver, or copied by us from a
/// mapping. A lean client copies as fast as we do, a busy one better gets what is copied already. Nobody can tell beforehand: that depends on who
/// has time, and on what else the cores have to do. So it is measured: bytes a second of short spells, now and then of one the other way.
///
/// All loops of a server go the same way at a time. One that alone leaves its copies to the clients is faster, at the others' expense: each would
/// choose that, and all would be slower.
final class FasterWay: Sendable {
    /// Long enough that what waits in sockets, and is copied after its spell, hardly counts.
    static let spellByteCount = 64 << 20
    /// What is sent before a spell the other way counts.
    static let settlingByteCount = 32 << 20
    /// A spell in which the client took its time says nothing. Nanoseconds.
    private static let spellLimit: UInt64 = 400_000_000
    /// The slower way is tried each so many spells; what was much slower less often, for that costs.
    private static let trialPeriod: (near: UInt64, far: UInt64) = (16, 64)

    private let isFirstNow = Atomic<Bool>(true)
    private let measured = Mutex(Measured())

    /// The way to go now is the first one.
    var isFirst: Bool { isFirstNow.load(ordering: .relaxed) }

    /// - Parameters:
    ///   - moved: bytes, long pieces among them.
    ///   - now: nanoseconds.
    func note(moved: Int, now: UInt64) {
        measured.withLock { isFirstNow.store($0.note(moved, now), ordering: .relaxed) }
    }

    private struct Measured {
        private var isFirst = true
        /// Bytes per nanosecond, smoothed; 0 where nothing is known.
        private var rates: (first: Double, second: Double) = (0, 0)
        private var spellCount: UInt64 = 0
        private var spellStart: UInt64 = 0
        /// Of this spell; negative before it counts.
        private var byteCount = -FasterWay.settlingByteCount

        /// Returns whether the first way is next.
        mutating func note(_ moved: Int, _ now: UInt64) -> Bool {
            let isSettling = byteCount < 0
            byteCount += moved
            if isSettling {
                if byteCount >= 0 { begin(now) }
            } else if byteCount >= FasterWay.spellByteCount {
                end(now)
            }
            return isFirst
        }

        private mutating func begin(_ now: UInt64) {
            byteCount = 0
            spellStart = now
        }

        private mutating func end(_ now: UInt64) {
            let duration = now &- spellStart
            let counts = duration > 0 && duration < FasterWay.spellLimit
            if counts {
                let rate = Double(byteCount) / Double(duration)
                if isFirst { smooth(&rates.first, rate) } else { smooth(&rates.second, rate) }
                spellCount += 1
            }
            begin(now)
            let wasFirst = isFirst
            isFirst = (rates.first >= rates.second) != (counts && isTrialNext)
            if isFirst != wasFirst { byteCount = -FasterWay.settlingByteCount }
        }

        private var isTrialNext: Bool {
            let isFar = min(rates.first, rates.second) < 0.8 * max(rates.first, rates.second)
            return spellCount == 1 || spellCount.isMultiple(of: isFar ? FasterWay.trialPeriod.far : FasterWay.trialPeriod.near)
        }

        private func smooth(_ value: inout Double, _ rate: Double) {
            value = value == 0 ? rate : (value + rate) / 2
        }
    }
}
