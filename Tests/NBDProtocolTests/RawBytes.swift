extension [UInt8] {
    /// The bytes as the conversations take them.
    var rawSpan: RawSpan {
        @_lifetime(borrow self)
        get {
            // SAFETY: bytes have no padding; the span borrows the array.
            unsafe span.bytes
        }
    }

    /// The bytes that `body` writes, at most `rawCapacity`.
    init(rawCapacity: Int, _ body: (inout OutputRawSpan) -> Void) {
        // SAFETY: the memory outlives the span, and `finalize` tells how much of it was written.
        self = unsafe withUnsafeTemporaryAllocation(byteCount: rawCapacity, alignment: 8) { memory in
            var span = unsafe OutputRawSpan(buffer: memory, initializedCount: 0)
            body(&span)
            let count = unsafe span.finalize(for: memory)
            return unsafe Array(memory.prefix(count))
        }
    }
}
