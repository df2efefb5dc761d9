public import Block
public import NIOCore

/// A run of bytes on its way out.
public enum OutputPiece {
    case bytes(ByteBuffer)
    /// Bytes that are sent from where they lie (`Transmission.sendsSegments`).
    case segment(Segment)
}

/// Replies on their way out, in order: small ones are written one behind the other into shared buffers, large ones keep their own, and bytes
/// that need not be copied are only named. So one vectored send takes everything of a turn.
struct ReplyQueue {
    /// Replies up to this many bytes are worth copying.
    static let copyLimit = 8 << 10

    private enum Piece {
        /// Part of a buffer, which is named by its number since the beginning.
        case bytes(buffer: Int, start: Int, count: Int)
        case segment(Segment)
    }

    var pool: BufferPool
    private var pieces: [Piece] = []
    /// The first piece that is not sent.
    private var head = 0
    /// Buffers that pieces name, from number `firstBuffer` on. The last one is written to while `isOpen`.
    private var buffers: [ByteBuffer] = []
    private var firstBuffer = 0
    private var isOpen = false
    /// Bytes in the queue.
    private(set) var byteCount = 0
    /// Those of them that are only named, and take no memory of ours.
    private var segmentByteCount = 0
    var memoryByteCount: Int { byteCount - segmentByteCount }
    /// Whether bytes are named that lie elsewhere.
    var hasSegments: Bool { segmentByteCount > 0 }
    /// Buffers that were taken, in order, to be used again once they are sent.
    private var taken: [ByteBuffer] = []

    init(pool: BufferPool) {
        self.pool = pool
        pieces.reserveCapacity(64)
        buffers.reserveCapacity(8)
    }

    /// Lets `body` append up to `room` bytes behind the last reply. What it appends is kept if it returns true.
    @discardableResult
    mutating func append(room: Int, _ body: (inout ByteBuffer) -> Bool) -> Bool {
        if !isOpen || buffers[buffers.count - 1].writableBytes < room {
            buffers.append(pool.take(room))
            isOpen = true
        }
        let last = buffers.count - 1
        let start = buffers[last].writerIndex
        guard body(&buffers[last]) else {
            buffers[last].moveWriterIndex(to: start)
            return false
        }
        added(buffer: firstBuffer + last, start: start, count: buffers[last].writerIndex - start)
        return true
    }

    mutating func append(_ reply: ByteBuffer) {
        let count = reply.readableBytes
        guard count > Self.copyLimit else {
            append(room: count) {
                $0.writeImmutableBuffer(reply)
                return true
            }
            return
        }
        buffers.append(reply)
        isOpen = false
        added(buffer: firstBuffer + buffers.count - 1, start: reply.readerIndex, count: count)
    }

    mutating func append(_ segments: SegmentList) {
        for segment in segments.segments { append(segment) }
    }

    /// Replaces bytes that are only named by copies, as far as they are in memory.
    mutating func copySegments() {
        var copy = ReplyQueue(pool: pool)
        for piece in pieces[head...] {
            switch piece {
            case .bytes(let number, let start, let count):
                if let slice = buffers[number - firstBuffer].getSlice(at: start, length: count) { copy.append(slice) }
            case .segment(let segment):
                let isCopied = copy.append(room: segment.byteCount) { buffer in
                    var isComplete = false
                    buffer.writeWithOutputRawSpan(minimumWritableBytes: segment.byteCount) { isComplete = segment.readNow(into: &$0) }
                    return isComplete
                }
                if !isCopied { copy.append(segment) }
            }
        }
        copy.taken = taken
        self = copy
    }

    private mutating func append(_ segment: Segment) {
        pieces.append(.segment(segment))
        byteCount += segment.byteCount
        segmentByteCount += segment.byteCount
    }

    private mutating func added(buffer: Int, start: Int, count: Int) {
        guard count > 0 else { return }
        byteCount += count
        if head < pieces.count, case .bytes(buffer, let first, let before) = pieces[pieces.count - 1], first + before == start {
            pieces[pieces.count - 1] = .bytes(buffer: buffer, start: first, count: before + count)
        } else {
            pieces.append(.bytes(buffer: buffer, start: start, count: count))
        }
    }

    // MARK: Out, one way: taken as a whole

    /// Everything in the queue, in order.
    ///
    /// - Precondition: no segments.
    mutating func take() -> [ByteBuffer] {
        var output: [ByteBuffer] = []
        for piece in pieces[head...] {
            guard case .bytes(let number, let start, let count) = piece else { preconditionFailure("segments are not for taking") }
            let buffer = buffers[number - firstBuffer]
            if let slice = buffer.getSlice(at: start, length: count) { output.append(slice) }
        }
        taken += buffers
        buffers.removeAll(keepingCapacity: true)
        reset()
        return output
    }

    /// Everything that was taken has left the process: its memory can be used again.
    mutating func allSent() {
        for buffer in taken { pool.give(buffer) }
        taken.removeAll(keepingCapacity: true)
    }

    // MARK: Out, the other way: shown, and dropped as it is sent

    /// Shows the pieces in order, until `body` returns false.
    func forEachPiece(_ body: (OutputPiece, Range<Int>) -> Bool) {
        for piece in pieces[head...] {
            let goesOn =
                switch piece {
                case .bytes(let number, let start, let count): body(.bytes(buffers[number - firstBuffer]), start..<start + count)
                case .segment(let segment): body(.segment(segment), 0..<segment.byteCount)
                }
            if !goesOn { return }
        }
    }

    /// Forgets the first bytes of the queue: they are sent.
    mutating func drop(_ count: Int) {
        precondition(count <= byteCount, "sent more than there was")
        byteCount -= count
        var rest = count
        while rest > 0 {
            switch pieces[head] {
            case .bytes(let number, let start, let length):
                if rest < length {
                    pieces[head] = .bytes(buffer: number, start: start + rest, count: length - rest)
                    return compact()
                }
                rest -= length
            case .segment(let segment):
                let length = segment.byteCount
                segmentByteCount -= min(rest, length)
                if rest < length {
                    pieces[head] = .segment(segment.dropFirst(rest))
                    return compact()
                }
                rest -= length
            }
            head += 1
        }
        if head == pieces.count { reset() } else { compact() }
    }

    /// Gives back the buffers that no piece names any more, and the room of pieces that are gone: a queue that is never empty must not grow.
    private mutating func compact() {
        var needed = firstBuffer + buffers.count - (isOpen ? 1 : 0)
        for piece in pieces[head...] {
            guard case .bytes(let number, _, _) = piece else { continue }
            needed = number
            break
        }
        while firstBuffer < needed {
            pool.give(buffers.removeFirst())
            firstBuffer += 1
        }
        if head >= 64 {
            pieces.removeFirst(head)
            head = 0
        }
    }

    private mutating func reset() {
        for buffer in buffers { pool.give(buffer) }
        firstBuffer += buffers.count
        buffers.removeAll(keepingCapacity: true)
        pieces.removeAll(keepingCapacity: true)
        head = 0
        isOpen = false
        byteCount = 0
        segmentByteCount = 0
    }
}
