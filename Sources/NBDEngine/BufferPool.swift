import NIOCore

/// Buffers that were used and will be again, for the connections of one event loop: memory that goes back to the system costs a fault for each
/// page when it returns, and a connection that is idle should keep none.
public final class BufferPool {
    /// Bytes of the smallest buffer made here.
    static let bufferByteCount = 64 << 10
    /// Bytes of all buffers that are kept: those of four writes of a megabyte that are handed over and of one that arrives, each with the next header.
    static let keptByteCountLimit = 10 << 20

    /// What a task had is kept from so many bytes on: the system gives them with a fault and zeroes for each page. Shorter ones the C library has at
    /// hand, and hotter ones than we (256 KiB over TCP, kept: 0.9 of the speed).
    static let taskByteCountFloor = 1 << 20

    /// Bytes of a line of the core's cache; a power of 2.
    private static let lineByteCount = 64

    private var kept: [ByteBuffer] = []
    private var keptByteCount = 0
    var keptCount: Int { kept.count }

    public init() { kept.reserveCapacity(Self.keptByteCountLimit / Self.bufferByteCount) }

    /// An empty buffer with room for at least `byteCount`.
    func take(_ byteCount: Int) -> ByteBuffer {
        let byteCount = max(byteCount, Self.bufferByteCount)
        var buffer = ByteBuffer()
        if let index = kept.lastIndex(where: { $0.storageCapacity >= byteCount }) {
            buffer = kept.remove(at: index)
            keptByteCount -= buffer.storageCapacity
        }
        // Storage that somebody still reads is left to them; otherwise nothing is allocated.
        buffer.clear(minimumCapacity: byteCount)
        return buffer
    }

    /// The same, for bytes that the kernel will copy: their first lies at the beginning of a line of the core's cache. Elsewhere that can take longer
    /// (docs/decisions/0013).
    func takeAligned(_ byteCount: Int) -> ByteBuffer {
        var buffer = take(byteCount + Self.lineByteCount - 1)
        // SAFETY: nothing is read or written, only the address is looked at.
        let address = unsafe buffer.withUnsafeMutableWritableBytes { UInt(bitPattern: $0.baseAddress) }
        let skipped = Int((0 &- address) & UInt(Self.lineByteCount - 1))
        buffer.moveWriterIndex(forwardBy: skipped)
        buffer.moveReaderIndex(forwardBy: skipped)
        return buffer
    }

    func give(_ buffer: consuming ByteBuffer) {
        let byteCount = buffer.storageCapacity
        guard byteCount >= Self.bufferByteCount, keptByteCount + byteCount <= Self.keptByteCountLimit else { return }
        keptByteCount += byteCount
        kept.append(buffer)
    }
}
