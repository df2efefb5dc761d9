/// All numbers of the format are big-endian, at any alignment.
extension RawSpan {
    /// The integer at `offset`, counted in bytes from the start of the span. Traps outside of it, as an array would: callers check
    /// lengths first.
    @inlinable public func bigEndian<T: FixedWidthInteger & BitwiseCopyable>(_: T.Type = T.self, at offset: Int) -> T {
        precondition(offset >= 0 && offset <= byteCount - MemoryLayout<T>.size, "an integer at \(offset) of \(byteCount) bytes")
        // SAFETY: in bounds (above); an integer has no invalid bit patterns.
        return T(bigEndian: unsafe unsafeLoadUnaligned(fromUncheckedByteOffset: offset, as: T.self))
    }
}

extension MutableRawSpan {
    /// Writes the integer at `offset`, counted in bytes from the start of the span. Traps outside of it.
    @_lifetime(self: copy self)
    @inlinable public mutating func store<T: FixedWidthInteger & BitwiseCopyable>(bigEndian value: T, at offset: Int) {
        precondition(offset >= 0 && offset <= byteCount - MemoryLayout<T>.size, "an integer at \(offset) of \(byteCount) bytes")
        storeBytes(of: value.bigEndian, toByteOffset: offset, as: T.self)
    }
}

/// Builds the bytes of a table or header from front to back.
struct ByteBuilder {
    private(set) var bytes: [UInt8] = []

    mutating func append<T: FixedWidthInteger>(_ value: T) {
        for shift in stride(from: T.bitWidth - 8, through: 0, by: -8) {
            bytes.append(UInt8(truncatingIfNeeded: value >> T(shift)))
        }
    }

    mutating func append(contentsOf more: some Sequence<UInt8>) { bytes.append(contentsOf: more) }

    /// Zeroes up to the next multiple of `alignment` bytes.
    mutating func pad(toMultipleOf alignment: Int) {
        while bytes.count % alignment != 0 { bytes.append(0) }
    }

    /// Zeroes until there are `count` bytes; does nothing when there are more.
    mutating func pad(to count: Int) {
        if bytes.count < count { bytes.append(contentsOf: repeatElement(0, count: count - bytes.count)) }
    }
}

extension RawSpan {
    /// Copies `count` bytes at `offset`. Traps when they are not all inside.
    func bytes(at offset: Int, count: Int) -> [UInt8] {
        precondition(offset >= 0 && count >= 0 && offset <= byteCount && count <= byteCount - offset)
        // SAFETY: the pointer stays inside the closure, and the bounds are checked above.
        return unsafe withUnsafeBytes { all in unsafe [UInt8](all[offset..<offset + count]) }
    }
}
