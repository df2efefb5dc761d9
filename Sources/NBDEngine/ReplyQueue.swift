import NIOCore

/// Replies on their way out: small ones are written one behind the other into a shared buffer, large ones keep their own, so that one
/// vectored write sends everything of a turn.
struct ReplyQueue {
    /// Replies up to this many bytes are worth copying.
    static let copyLimit = 8 << 10
    static let bufferByteCount = 64 << 10

    /// Buffers kept for the next replies, and their size: memory that goes back to the system costs a fault for each page when it returns.
    static let spareLimit = 4
    static let spareByteCountLimit = 128 << 10

    private var full: [ByteBuffer] = []
    private var tail = ByteBuffer()
    /// Bytes in the queue.
    private(set) var byteCount = 0
    /// Shared buffers that were taken, in order, to be used again once they are sent.
    private var taken: [ByteBuffer] = []
    private var spare: [ByteBuffer] = []

    /// Lets `body` append up to `room` bytes behind the last reply. What it appends is kept if it returns true.
    mutating func append(room: Int, _ body: (inout ByteBuffer) -> Bool) -> Bool {
        if tail.writableBytes < room {
            if tail.readableBytes > 0 { full.append(tail) }
            tail = spare.popLast() ?? ByteBuffer()
            // Storage that somebody still reads is left to them; otherwise nothing is allocated.
            tail.clear(minimumCapacity: max(room, Self.bufferByteCount))
        }
        let start = tail.writerIndex
        guard body(&tail) else {
            tail.moveWriterIndex(to: start)
            return false
        }
        byteCount += tail.writerIndex - start
        return true
    }

    mutating func append(_ reply: ByteBuffer) {
        let count = reply.readableBytes
        guard count > Self.copyLimit else {
            _ = append(room: count) {
                $0.writeImmutableBuffer(reply)
                return true
            }
            return
        }
        if tail.readableBytes > 0 { full.append(tail) }
        tail = ByteBuffer()
        full.append(reply)
        byteCount += count
    }

    /// Everything in the queue, in order.
    mutating func take() -> [ByteBuffer] {
        if tail.readableBytes > 0 { full.append(tail) }
        tail = ByteBuffer()
        byteCount = 0
        for buffer in full where buffer.capacity <= Self.spareByteCountLimit && taken.count < Self.spareLimit { taken.append(buffer) }
        defer { full = [] }
        return full
    }

    /// Everything that was taken has left the process: its memory can be used again.
    mutating func allSent() {
        for buffer in taken where spare.count < Self.spareLimit { spare.append(buffer) }
        taken.removeAll(keepingCapacity: true)
    }
}
