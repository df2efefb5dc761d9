#if canImport(Darwin)
internal import Darwin
#elseif canImport(Musl)
internal import Musl
#else
internal import Glibc
#endif

/// The random numbers of one check: the same seed gives the same requests.
struct SeededRandom: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) {
        state = seed
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    /// `SEED` of the environment, or a new one.
    static var seed: UInt64 {
        // SAFETY: the C string is read at once; nothing in a test process changes the environment meanwhile.
        let given = unsafe getenv("SEED").flatMap { unsafe UInt64(String(cString: $0)) }
        return given ?? UInt64.random(in: 1..<1_000_000)
    }
}
