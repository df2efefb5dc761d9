public import Block
import NBDProtocol
import NIOCore

/// A request that has to wait for the disk or for a driver. It owns everything it needs, so it may run as a task of its own.
public struct AwaitedRequest: Sendable {
    let request: RequestRules.Request
    let payload: ByteBuffer
    /// Bytes of the memory budget that are held for it.
    let cost: Int
    let device: any BlockDevice
    /// See `Transmission.sources`; BLOCK_STATUS only.
    let sources: [UInt32: any ExtentSource]
    let mode: ReplyMode
    /// Most bytes of data in one chunk, as promised to the client (P-SIZE-13).
    let chunkByteCountLimit: UInt64
    let trace: Tracer?
    /// How the shell may carry it out without a task.
    public internal(set) var shortcut: Shortcut?

    /// The place stays the same for as long as the device is open.
    public enum Shortcut: Sendable {
        /// A short READ: a shell that can read its bytes itself passes them to `Transmission.complete(_:with:)`.
        case read(from: Segment)
        /// A long WRITE (`WritePolicy.handOverFloor`), for `write(to:_:)` and `Transmission.complete(_:isWritten:)`.
        case write(to: Segment)
    }

    /// The whole reply, and what it took.
    public struct Completion: Sendable {
        let replies: [ByteBuffer]
        let cost: Int
        /// Of the request: its memory can be used again.
        let payload: ByteBuffer
    }

    /// Reads shorter than this are answered as data, without asking where the holes are: that would cost more than it saves.
    static let sparseReadFloor: UInt64 = 32 << 10

    /// A READ is sent as data, without looking for holes.
    private var isSentAsData: Bool {
        mode == .simple || request.flags.contains(.df) || request.count < min(Self.sparseReadFloor, chunkByteCountLimit + 1)
    }

    /// A READ that takes its bytes and nothing else.
    var isPlainRead: Bool {
        request.command == .read && request.flags.subtracting(.df).isEmpty && request.count <= chunkByteCountLimit && isSentAsData
    }

    /// Extents of one reply, of all its contexts together: 16 MiB at most.
    static let extentCountLimit = 1 << 20
    /// Shorter holes are sent as zeroes (S-CMD-06).
    static let holeFloor: UInt64 = 4 << 10

    /// For its replies.
    var encoder: ReplyEncoder { ReplyEncoder(mode: mode, cookie: request.cookie, offset: request.offset, trace: trace) }

    /// Carries the request out. Never fails: failure is a reply.
    public func run() async -> Completion {
        let encoder = encoder
        var replies: [ByteBuffer] = []
        do throws(BlockError) {
            switch request.command {
            case .read:
                try await read(encoder, into: &replies)
            case .blockStatus:
                try await blockStatus(encoder, into: &replies)
            default:
                try await perform()
                replies.append(encoder.reply { encoder.success(into: &$0) })
            }
        } catch {
            replies.append(encoder.reply { encoder.failure(nbdError(error), error.detail, into: &$0) })
        }
        return Completion(replies: replies, cost: cost, payload: payload)
    }

    /// On any thread. False when that would have to wait for a disk, or fails: then a task has to write, which knows why.
    public func write(to place: Segment, _ turns: WriteTurns) -> Bool {
        turns.take { place.writeNow(from: payload.readableBytesSpan) }
    }

    private func nbdError(_ error: BlockError) -> NBDError {
        NBDError(error, command: request.command, isFastZero: request.flags.contains(.fastZero))
    }

    /// The range was checked by `RequestRules` against the size of the export; a device that shrank since answers for itself.
    private func range() throws(BlockError) -> ByteRange {
        guard let range = ByteRange(start: request.offset, count: request.count, within: device.info.byteCount) else {
            throw .outOfRange(offset: request.offset, count: request.count, size: device.info.byteCount)
        }
        return range
    }

    /// Everything that is answered with a mere success.
    private func perform() async throws(BlockError) {
        if request.command == .flush {
            if !device.info.isReadOnly { try await device.flush() }
            return
        }
        let range = try range()
        let isDurable = request.flags.contains(.fua)
        switch request.command {
        case .write:
            if range.isEmpty { break }
            let payload = payload
            try await device.write(at: range.start, from: payload.readableBytesSpan, isDurable ? .durable : [])
        case .writeZeroes:
            if range.isEmpty { break }
            var options: WriteOptions = isDurable ? .durable : []
            if !request.flags.contains(.noHole) { options.insert(.mayUnmap) }
            if request.flags.contains(.fastZero) { options.insert(.fast) }
            try await device.writeZeroes(range, options)
        case .trim:
            if !range.isEmpty { try await device.discard(range) }
            if isDurable { try await device.flush() }  // S-CMD-18
        case .cache:
            if !range.isEmpty { try await device.prefetch(range) }
        default:
            throw BlockError(.invalid, "unsupported command \(request.command.rawValue)")
        }
    }

    // MARK: READ

    private func read(_ encoder: ReplyEncoder, into replies: inout [ByteBuffer]) async throws(BlockError) {
        let range = try range()
        if request.flags.contains(.fua), !device.info.isReadOnly { try await device.flush() }  // S-CMD-01
        guard !range.isEmpty || mode == .simple else {
            replies.append(encoder.reply { encoder.done(into: &$0) })  // S-CMD-05
            return
        }
        guard mode == .simple || range.count <= chunkByteCountLimit || !request.flags.contains(.df) else {
            throw BlockError(.tooLarge, "READ of \(range.count) bytes in one chunk; at most \(chunkByteCountLimit) are sent")  // P-CMD-READ-3
        }
        guard !isSentAsData else {
            replies.append(try await data(range, isLast: true, encoder))
            return
        }
        for extent in try await readPlan(range) {
            let isLast = extent.range.end == range.end
            guard !extent.isHole else {
                replies.append(
                    encoder.reply { encoder.hole(position: extent.range.start, count: extent.range.count, isLast: isLast, into: &$0) })
                continue
            }
            do throws(BlockError) {
                replies.append(try await data(extent.range, isLast: isLast, encoder))
            } catch {
                // What was read so far is good; say where it ended (S-CMD-08, P-CMD-READ-4).
                replies.append(
                    encoder.reply {
                        encoder.failure(nbdError(error), error.detail, failedAt: extent.range.start, into: &$0)
                    })
                return
            }
        }
    }

    /// Header and data in one buffer, the data read into its place.
    private func data(_ range: ByteRange, isLast: Bool, _ encoder: ReplyEncoder) async throws(BlockError) -> ByteBuffer {
        let count = Int(range.count)
        var buffer = ByteBufferAllocator().buffer(capacity: encoder.dataHeaderByteCount + count)
        encoder.dataHeader(position: range.start, count: count, isLast: isLast, into: &buffer)
        guard count > 0 else { return buffer }
        let start = buffer.readableBytes
        // A driver that forgets to fill its buffer must not show a stranger what the memory held before.
        buffer.writeRepeatingByte(0, count: count)
        var bytes = buffer.mutableReadableBytesSpan
        var place = bytes._mutatingExtracting(start..<(start + count))
        try await device.read(at: range.start, into: &place)
        encoder.traceData(position: range.start, count: count)
        return buffer
    }

    private struct Piece {
        var range: ByteRange
        var isHole: Bool
    }

    /// Splits a read into data and holes long enough to be worth it.
    private func readPlan(_ range: ByteRange) async throws(BlockError) -> [Piece] {
        var extents = ExtentList(byteCountLimit: range.count, extentCountLimit: 1024)
        try await device.status(of: range, into: &extents)
        var pieces: [Piece] = []
        var rest = range
        func add(_ count: UInt64, isHole: Bool) {
            var part = rest.prefix(count)
            rest = rest.dropFirst(count)
            if !isHole, let last = pieces.last, !last.isHole,
                let joined = ByteRange(start: last.range.start, count: last.range.count + part.count)
            {
                pieces.removeLast()
                part = joined
            }
            while !isHole, part.count > chunkByteCountLimit {
                pieces.append(Piece(range: part.prefix(chunkByteCountLimit), isHole: false))
                part = part.dropFirst(chunkByteCountLimit)
            }
            pieces.append(Piece(range: part, isHole: isHole))
        }
        for extent in extents.extents {
            add(extent.count, isHole: extent.status.contains(.zero) && extent.count >= Self.holeFloor)
        }
        if !rest.isEmpty { add(rest.count, isHole: false) }  // not described: data is always true
        return pieces
    }

    // MARK: BLOCK_STATUS

    /// One chunk for each context, in order; a failure ends the reply, for a cookie has but one DONE (S-BST-12, S-BUG-04).
    private func blockStatus(_ encoder: ReplyEncoder, into replies: inout [ByteBuffer]) async throws(BlockError) {
        let range = try range()
        let extentCountLimit =
            request.flags.contains(.reqOne) ? 1 : min(131_072, max(1, Self.extentCountLimit / max(1, request.contexts.count)))
        for (index, context) in request.contexts.enumerated() {
            var list = ExtentList(byteCountLimit: range.count, extentCountLimit: extentCountLimit)
            if context.id == MetaContext.baseAllocation.id {
                try await device.status(of: range, into: &list)
                if list.extents.isEmpty { list.append(range.count, .data) }
            } else {
                guard let source = sources[context.id] else {
                    throw BlockError(.invalid, "metadata context \(context.id) tells nothing")
                }
                try await source.extents(of: range, into: &list)
                guard !list.extents.isEmpty else { throw BlockError(.inputOutput, "metadata context \(context.id) tells nothing") }
            }
            let isLast = index == request.contexts.count - 1
            replies.append(encoder.reply { encoder.extents(list, context: context.id, isLast: isLast, into: &$0) })
        }
    }
}

extension ReplyEncoder {
    /// A buffer with one reply in it.
    func reply(_ body: (inout ByteBuffer) -> Void) -> ByteBuffer {
        var buffer = ByteBuffer()
        body(&buffer)
        return buffer
    }
}
