internal import Block

/// Tables of 64-bit words as arrays of bytes.
extension [UInt8] {
    /// The bytes as big-endian words; a rest of less than eight is left out.
    var bigEndianWords: [UInt64] {
        let bytes = rawBytes
        return (0..<count / 8).map { bytes.bigEndian(at: $0 * 8) }
    }

    init(bigEndianWords words: some Sequence<UInt64>, count: Int) {
        self.init(repeating: 0, count: count * 8)
        var span = mutableSpan
        // SAFETY: every bit pattern is a byte.
        var raw = unsafe span.mutableBytes
        var index = 0
        for word in words where index < count {
            raw.store(bigEndian: word, at: index * 8)
            index += 1
        }
    }

    /// The bytes, to be changed in place.
    mutating func withMutableRawBytes<Result>(_ body: (inout MutableRawSpan) -> Result) -> Result {
        var span = mutableSpan
        // SAFETY: every bit pattern is a byte.
        var raw = unsafe span.mutableBytes
        return body(&raw)
    }
}
