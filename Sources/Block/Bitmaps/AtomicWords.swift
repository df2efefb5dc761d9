internal import Synchronization

/// Words of 64 bits, all 0 at first, that any thread reads and sets bits in at any time.
// SAFETY: allocated and initialised in `init` for `count` words, freed in `deinit`, which nobody outlives because there is one owner; every
// index is checked; what is shared is touched by atomic operations alone.
@safe struct AtomicWords: ~Copyable, @unchecked Sendable {
    let count: Int
    private let words: UnsafeMutablePointer<Atomic<UInt64>>

    init(count: Int) {
        self.count = count
        unsafe words = .allocate(capacity: count)
        for index in 0..<count { unsafe (words + index).initialize(to: Atomic(0)) }
    }

    deinit {
        unsafe words.deinitialize(count: count)
        unsafe words.deallocate()
    }

    subscript(index: Int) -> UInt64 {
        precondition(index >= 0 && index < count, "word \(index) of \(count)")
        return unsafe words[index].load(ordering: .acquiring)
    }

    /// Sets bits; words that have them already are only read, so that cores which mark the same place do not fight for it.
    func set(_ bits: UInt64, in index: Int) {
        guard self[index] & bits != bits else { return }
        unsafe words[index].bitwiseOr(bits, ordering: .acquiringAndReleasing)
    }

    func clear() {
        for index in 0..<count { unsafe words[index].store(0, ordering: .releasing) }
    }

    // MARK: As one row of bits

    func contains(bit: Int) -> Bool { self[bit >> 6] & (1 << UInt64(bit & 63)) != 0 }

    func set(bit: Int) { set(1 << UInt64(bit & 63), in: bit >> 6) }

    /// Sets `first ... last`.
    func set(bits first: Int, through last: Int) {
        for index in first >> 6...last >> 6 { set(Self.mask(first, last, word: index), in: index) }
    }

    /// How many of `first ... last` are set.
    func count(bits first: Int, through last: Int) -> UInt64 {
        var sum: UInt64 = 0
        for index in first >> 6...last >> 6 { sum += UInt64((self[index] & Self.mask(first, last, word: index)).nonzeroBitCount) }
        return sum
    }

    /// The first bit from `bit` on that is `value`; nil when there is none.
    func first(_ value: Bool, from bit: Int) -> Int? {
        var index = bit >> 6
        var mask = UInt64.max << UInt64(bit & 63)
        while index < count {
            let word = (value ? self[index] : ~self[index]) & mask
            if word != 0 { return index << 6 + word.trailingZeroBitCount }
            mask = .max
            index += 1
        }
        return nil
    }

    private static func mask(_ first: Int, _ last: Int, word: Int) -> UInt64 {
        var mask = UInt64.max
        if word == first >> 6 { mask &= .max << UInt64(first & 63) }
        if word == last >> 6 { mask &= .max >> UInt64(63 - last & 63) }
        return mask
    }
}
