/// SplitMix64: small, quick, and the same sequence everywhere. Not for secrets.
struct SplitMix64: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    /// A number below `bound`, without a division.
    mutating func next(below bound: UInt64) -> UInt64 { next().multipliedFullWidth(by: bound).high }
}

/// The requests of one connection, one after the other, without end.
struct BenchWorkload {
    private var random: SplitMix64
    private let pattern: BenchPattern
    private let mix: UInt64
    private let blockByteCount: UInt64
    /// Blocks this connection may touch: with random patterns all, else its own part.
    private let blocks: Range<UInt64>
    private var cursor: UInt64

    /// - Parameters:
    ///   - blockCount: blocks of the export that are used; for a sequential pattern at least as many as there are connections.
    ///   - index: which of the plan's connections this is, from 0.
    init(_ plan: BenchPlan, blockCount: UInt64, connection index: Int) {
        // Each connection its own sequence; an odd factor keeps seeds apart that differ by one.
        random = SplitMix64(seed: plan.seed &+ UInt64(index) &* 0xD1B5_4A32_D192_ED03)
        pattern = plan.pattern
        mix = UInt64(plan.mix)
        blockByteCount = plan.blockByteCount
        if plan.pattern.isRandom {
            blocks = 0..<blockCount
        } else {
            let (share, rest) = blockCount.quotientAndRemainder(dividingBy: UInt64(plan.connectionCount))
            let start = UInt64(index) * share + min(UInt64(index), rest)
            blocks = start..<(start + share + (UInt64(index) < rest ? 1 : 0))
        }
        cursor = blocks.lowerBound
    }

    mutating func next() -> (isWrite: Bool, offset: UInt64) {
        let block: UInt64
        if pattern.isRandom {
            block = random.next(below: blocks.upperBound)
        } else {
            block = cursor
            cursor += 1
            if cursor == blocks.upperBound { cursor = blocks.lowerBound }
        }
        let isWrite = pattern.isMixed ? random.next(below: 100) >= mix : pattern.writes
        return (isWrite, block * blockByteCount)
    }
}
