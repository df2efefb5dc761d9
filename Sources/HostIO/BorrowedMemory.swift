/// The memory behind a span that its caller lends for the length of one call.
///
/// Spans cannot enter closures, so an asynchronous function hands the pool this instead. It is sound because of one rule, which every user
/// keeps: a `BorrowedMemory` never outlives the function that received the span, and that function does not return before the work that
/// uses it has ended (the continuation is resumed last). The caller's borrow, exclusive for a `MutableRawSpan`, lasts just as long.
@safe struct BorrowedMemory: @unchecked Sendable {
    private let base: UnsafeMutableRawPointer?
    let count: Int

    init(_ span: inout MutableRawSpan) {
        count = span.byteCount
        // SAFETY: the pointer leaves the closure under the rule of this type.
        unsafe base = span.withUnsafeMutableBytes { bytes in bytes.baseAddress }
    }

    /// Memory that is only read, though the pointer's type would allow more: users pass it to writes alone.
    init(reading span: RawSpan) {
        count = span.byteCount
        // SAFETY: as above; `PositionalIO.write` only reads it.
        unsafe base = span.withUnsafeBytes { bytes in unsafe UnsafeMutableRawPointer(mutating: bytes.baseAddress) }
    }

    init(_ bytes: UnsafeMutableRawBufferPointer) {
        // SAFETY: the caller frees the memory after the last use, under the rule of this type.
        unsafe base = bytes.baseAddress
        count = bytes.count
    }

    private init(base: UnsafeMutableRawPointer?, count: Int) {
        // SAFETY: a part of lent memory (`part`), so the rule holds for it as for the whole.
        unsafe self.base = base
        self.count = count
    }

    /// The address of the byte at `position`, which must not exceed `count`.
    @unsafe func address(_ position: Int) -> UnsafeMutableRawPointer? {
        // SAFETY: inside or one past the lent memory.
        unsafe base.map { unsafe $0 + position }
    }

    func part(_ position: Int, _ count: Int) -> BorrowedMemory {
        precondition(position >= 0 && count >= 0 && position <= self.count - count)
        // SAFETY: in bounds by the precondition.
        return unsafe BorrowedMemory(base: address(position), count: count)
    }

    /// Shows the bytes, all of which were written.
    func withSpan<Result>(_ body: (RawSpan) -> Result) -> Result {
        // SAFETY: lent for the length of the call, and the span ends before.
        body(unsafe RawSpan(_unsafeBytes: UnsafeRawBufferPointer(start: base, count: count)))
    }

    func isAligned(to alignment: Int) -> Bool {
        // SAFETY: looks at the number only, never at the memory.
        unsafe UInt(bitPattern: base) % UInt(alignment) == 0
    }

    func copy(from other: BorrowedMemory) {
        precondition(other.count <= count)
        // SAFETY: both are lent for the length of the call and `other` fits. Only empty memory has no address.
        guard let target = unsafe address(0), let source = unsafe other.address(0) else { return }
        unsafe target.copyMemory(from: source, byteCount: other.count)
    }
}
