/// Memory for short reads that a loop does for itself, aligned for O_DIRECT, in blocks that are used again and never go back: the kernel
/// writes to them, also when nobody is interested any more.
struct RingMemory {
    static let blockByteCount = 32 << 10
    static let alignment = 4096
    /// Blocks of one loop, 4 MiB of addresses; of each only the pages that were read into take memory.
    private static let blockCountLimit = 128

    private var free: [BorrowedMemory] = []
    private var blockCount = 0

    /// A block; nil when all are in use.
    mutating func take() -> BorrowedMemory? {
        if let block = free.popLast() { return block }
        guard blockCount < Self.blockCountLimit else { return nil }
        blockCount += 1
        // SAFETY: never freed, so it outlives every use.
        return unsafe BorrowedMemory(.allocate(byteCount: Self.blockByteCount, alignment: Self.alignment))
    }

    mutating func give(_ block: BorrowedMemory) { free.append(block) }
}
