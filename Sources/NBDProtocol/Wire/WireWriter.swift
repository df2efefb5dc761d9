extension OutputRawSpan {
    /// Appends an integer in the order of the network. The caller has made room.
    @inlinable @_lifetime(self: copy self)
    public mutating func appendBigEndian<T: FixedWidthInteger & BitwiseCopyable>(_ value: T) {
        // SAFETY: `append` checks the capacity; an integer has no padding that could leak.
        unsafe append(value.bigEndian, as: T.self)
    }
}

extension [UInt8] {
    /// Appends an integer in the order of the network.
    public mutating func appendBigEndian<T: FixedWidthInteger>(_ value: T) {
        for shift in stride(from: T.bitWidth - 8, through: 0, by: -8) {
            append(UInt8(truncatingIfNeeded: value >> T(shift)))
        }
    }

    /// Appends a string with its 32-bit length.
    mutating func appendCounted(_ text: String) {
        appendBigEndian(UInt32(text.utf8.count))
        append(contentsOf: text.utf8)
    }
}
