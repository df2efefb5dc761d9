/// Small and repeatable: the same input always runs the same way (SplitMix64).
struct Random: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = (state ^ (state >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }

    /// How many bytes the next piece has; seed 0 means everything at once.
    mutating func pieceByteCount(_ seed: UInt8) -> Int {
        switch seed & 3 {
        case _ where seed & 0x7F == 0: .max
        case 0: 1
        case 1: Int.random(in: 1...3, using: &self)
        case 2: Int.random(in: 1...64, using: &self)
        default: Int.random(in: 1...5000, using: &self)
        }
    }
}
