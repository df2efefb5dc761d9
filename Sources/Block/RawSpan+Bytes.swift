extension RawSpan {
    /// The byte at `offset`, counted from the start of the span. Traps outside of it, as an array would.
    @inlinable public subscript(offset: Int) -> UInt8 {
        precondition(offset >= 0 && offset < byteCount, "byte \(offset) of \(byteCount)")
        // SAFETY: in bounds (above); every bit pattern is a byte.
        return unsafe unsafeLoad(fromByteOffset: offset, as: UInt8.self)
    }
}
