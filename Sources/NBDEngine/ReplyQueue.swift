import Block
import NIOCore

/// Replies on their way out, in order: small ones are written one behind the other into shared buffers, large ones keep their own, and bytes
/// that need not be copied are only named. So one vectored send takes everything of a turn.
struct ReplyQueue {
    /// Replies up to this many bytes are worth copying.
    static let copyLimit = 8 << 10

    /// Names buffers and files by number: so what is done for each piece counts no references.
    private enum Piece {
        /// Part of a buffer: of the one with this number since the beginning.
        case bytes(buffer: Int, start: Int, count: Int)
        /// Part of a file in `files`.
        case file(Int, offset: UInt64, count: Int)
        case zeroes(count: Int)

        var count: Int {
            switch self {
            case .bytes(_, _, let count), .file(_, _, let count), .zeroes(let count): count
            }
        }

        /// Names bytes that lie elsewhere.
        var isSegment: Bool { if case .bytes = self { false } else { true } }

        func dropFirst(_ byteCount: Int) -> Piece {
            switch self {
            case .bytes(let buffer, let start, let count): .bytes(buffer: buffer, start: start + byteCount, count: count - byteCount)
            case .file(let number, let offset, let count): .file(number, offset: offset + UInt64(byteCount), count: count - byteCount)
            case .zeroes(let count): .zeroes(count: count - byteCount)
            }
        }
    }

    var pool: BufferPool
    private var pieces: [Piece] = []
    /// The first piece that is not sent.
    private var head = 0
    /// Buffers that pieces name, from number `firstBuffer` on. The last one is written to while `isOpen`.
    private var buffers: [ByteBuffer] = []
    private var firstBuffer = 0
    private var isOpen = false
    /// Files that pieces name, each once: as many as the device has, at most. Forgotten when the queue is empty.
    private var files: [Segment.File] = []
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
        files.reserveCapacity(4)
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

    /// Takes them out of their list.
    mutating func append(takenFrom segments: inout SegmentList) {
        segments.takeAll { append($0) }
    }

    /// Replaces bytes that are only named by copies, as far as they are in memory.
    mutating func copySegments() {
        var copy = ReplyQueue(pool: pool)
        for piece in pieces[head...] {
            let segment: Segment
            switch piece {
            case .bytes(let number, let start, let count):
                if let slice = buffers[number - firstBuffer].getSlice(at: start, length: count) { copy.append(slice) }
                continue
            case .file(let number, let offset, let count): segment = .file(files[number], offset: offset, count: count)
            case .zeroes(let count): segment = .zeroes(count: count)
            }
            let isCopied = copy.append(room: segment.byteCount) { buffer in
                var isComplete = false
                buffer.writeWithOutputRawSpan(minimumWritableBytes: segment.byteCount) { isComplete = segment.readNow(into: &$0) }
                return isComplete
            }
            if !isCopied { copy.append(segment) }
        }
        copy.taken = taken
        self = copy
    }

    private mutating func append(_ segment: Segment) {
        switch segment {
        case .file(let file, let offset, let count): pieces.append(.file(number(of: file), offset: offset, count: count))
        case .zeroes(let count): pieces.append(.zeroes(count: count))
        }
        byteCount += segment.byteCount
        segmentByteCount += segment.byteCount
    }

    private mutating func number(of file: Segment.File) -> Int {
        if let number = files.firstIndex(where: { $0 === file }) { return number }
        files.append(file)
        return files.count - 1
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

    /// Shows the pieces in order, until the sink has enough.
    func show(to sink: inout some OutputSink & ~Copyable) {
        var index = head
        var goesOn = true
        while goesOn, index < pieces.count {
            if case .bytes(let number, _, _) = pieces[index] {
                goesOn = show(from: &index, number, buffers[number - firstBuffer], to: &sink)
            } else {
                goesOn = show(from: &index, -1, ByteBuffer(), to: &sink)
            }
        }
    }

    /// Shows the pieces up to one that names another buffer.
    private func show(from index: inout Int, _ number: Int, _ buffer: ByteBuffer, to sink: inout some OutputSink & ~Copyable) -> Bool {
        let bytes = buffer.readableBytesSpan
        let first = buffer.readerIndex
        var file: (number: Int, file: Segment.File)?
        while index < pieces.count {
            switch pieces[index] {
            case .bytes(number, let start, let count):
                guard sink.append(bytes.extracting(start - first..<start - first + count)) else { return false }
            case .bytes:
                return true
            case .file(let number, let offset, let count):
                if file?.number != number { file = (number, files[number]) }
                guard let file, sink.append(file.file, offset: offset, count: count) else { return false }
            case .zeroes(let count):
                guard sink.append(zeroes: count) else { return false }
            }
            index += 1
        }
        return true
    }

    /// Forgets the first bytes of the queue: they are sent.
    mutating func drop(_ count: Int) {
        precondition(count <= byteCount, "sent more than there was")
        byteCount -= count
        var rest = count
        while rest > 0 {
            let piece = pieces[head]
            let length = min(rest, piece.count)
            rest -= length
            if piece.isSegment { segmentByteCount -= length }
            guard length == piece.count else {
                pieces[head] = piece.dropFirst(length)
                return compact()
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
        files.removeAll(keepingCapacity: true)
        head = 0
        isOpen = false
        byteCount = 0
        segmentByteCount = 0
    }
}
