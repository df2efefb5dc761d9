extension MutableRawSpan {
    /// Sets all bytes to 0.
    @_lifetime(self: copy self)
    public mutating func fillWithZeroes() {
        // SAFETY: the pointer stays inside the closure and covers exactly the span.
        unsafe withUnsafeMutableBytes { bytes in _ = unsafe bytes.initializeMemory(as: UInt8.self, repeating: 0) }
    }

    /// Copies all of `bytes` to the front.
    ///
    /// - Precondition: they fit.
    @_lifetime(self: copy self)
    public mutating func copy(from bytes: RawSpan) {
        precondition(bytes.byteCount <= byteCount)
        // SAFETY: both pointers stay inside their closures, and the length was checked.
        unsafe withUnsafeMutableBytes { target in
            unsafe bytes.withUnsafeBytes { source in unsafe target.copyMemory(from: source) }
        }
    }
}

extension RawSpan {
    /// Whether all bytes are 0. Stops at the first that is not.
    public var isZero: Bool {
        let words = byteCount / 8
        var index = 0
        // Four words at a time: the compiler makes vector instructions of it.
        while index + 4 <= words {
            let at = index * 8
            // SAFETY: at + 32 <= byteCount; integers have no invalid bit patterns.
            let any =
                unsafe unsafeLoadUnaligned(fromUncheckedByteOffset: at, as: UInt64.self)
                | unsafeLoadUnaligned(fromUncheckedByteOffset: at + 8, as: UInt64.self)
                | unsafeLoadUnaligned(fromUncheckedByteOffset: at + 16, as: UInt64.self)
                | unsafeLoadUnaligned(fromUncheckedByteOffset: at + 24, as: UInt64.self)
            if any != 0 { return false }
            index += 4
        }
        for position in index * 8..<byteCount {
            // SAFETY: inside the span.
            if unsafe unsafeLoad(fromUncheckedByteOffset: position, as: UInt8.self) != 0 { return false }
        }
        return true
    }
}

extension [UInt8] {
    /// The bytes, borrowed.
    public var rawBytes: RawSpan {
        // SAFETY: marked unsafe for element types with padding; bytes have none.
        @_lifetime(borrow self) get { unsafe span.bytes }
    }
}
