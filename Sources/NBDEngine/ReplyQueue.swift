import NIOCore

/// Replies on their way out: small ones are written one behind the other into a shared buffer, large ones keep their own, so that one
/// vectored write sends everything of a turn.
struct ReplyQueue {
    /// Replies up to this many bytes are worth copying.
    static let copyLimit = 8 << 10
    static let bufferByteCount = 64 << 10

    private var full: [ByteBuffer] = []
    private var tail = ByteBuffer()
    /// Bytes in the queue.
    private(set) var byteCount = 0

    var isEmpty: Bool { byteCount == 0 }

    /// Lets `body` append up to `room` bytes behind the last reply. What it appends is kept if it returns true.
    mutating func append(room: Int, _ body: (inout ByteBuffer) -> Bool) -> Bool {
        if tail.writableBytes < room {
            if tail.readableBytes > 0 { full.append(tail) }
            tail = ByteBufferAllocator().buffer(capacity: max(room, Self.bufferByteCount))
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
        defer { full = [] }
        return full
    }
}
