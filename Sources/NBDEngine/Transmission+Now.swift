import Block
import NBDProtocol
import NIOCore

// The fast path: a request whose bytes lie in the page cache is answered in the same turn, without a task, a slot or an allocation.
extension Transmission {
    /// Longest request that is done on the event loop: more would keep other clients of the loop waiting.
    static let nowByteCountLimit: UInt64 = 1 << 20

    /// Carries out a request at once if the device says where its bytes lie and they are at hand; otherwise nothing has happened.
    mutating func runNow(_ request: RequestRules.Request, _ payload: ByteBuffer?, cost: Int) -> Bool {
        segments.removeAll()
        guard request.count > 0, request.count <= min(Self.nowByteCountLimit, UInt64(session.export.blockSizes.maximumPayload)),
            let range = ByteRange(start: request.offset, count: request.count)
        else { return false }
        let encoder = ReplyEncoder(mode: rules.mode, cookie: request.cookie, offset: request.offset, trace: trace)
        let before = replies.memoryByteCount
        // What was mapped is used now or in the queue of replies, which says when it has left.
        defer { if !replies.hasSegments { mapper?.released() } }
        switch request.command {
        case .read where request.flags.subtracting(.df).isEmpty:
            // Bytes at hand are sent as data without asking for holes: a hole that nobody has read is not at hand.
            guard mapper?.mapRead(range, into: &segments) == true else { return false }
            let count = Int(request.count)
            guard sendNow(count, encoder) || readNow(count, encoder) else { return false }
            if trace != nil { encoder.traceData(position: encoder.offset, count: count) }
        case .write where request.flags.subtracting(.payloadLength).isEmpty:
            guard let payload, mapper?.mapWrite(range, into: &segments) == true, !shouldHandOver(request) else { return false }
            let isWritten = writeNow(payload)
            mapper?.didWrite(range)
            guard isWritten else { return false }
            noteWritten(payload.readableBytes)
            appendSuccess(encoder)
        default:
            return false
        }
        account(since: before)
        lease.release(cost)
        return true
    }

    /// Only the header is written; the data is sent from where it lies.
    private mutating func sendNow(_ count: Int, _ encoder: ReplyEncoder) -> Bool {
        guard sendsSegments, segments.areAtHand else { return false }
        replies.append(room: encoder.dataHeaderByteCount) { buffer in
            encoder.dataHeader(position: encoder.offset, count: count, isLast: true, into: &buffer)
            return true
        }
        replies.append(takenFrom: &segments)
        return true
    }

    /// Header and data straight into the queue of replies.
    private mutating func readNow(_ count: Int, _ encoder: ReplyEncoder) -> Bool {
        let byteCount = encoder.dataHeaderByteCount + count
        let segments = segments
        return replies.append(room: byteCount) { buffer in
            var isComplete = false
            buffer.writeWithOutputRawSpan(minimumWritableBytes: byteCount) { output in
                encoder.dataHeader(position: encoder.offset, count: count, isLast: true, into: &output)
                isComplete = segments.readNow(into: &output) && output.byteCount == byteCount
            }
            return isComplete
        }
    }

    /// The bytes of a READ that was taken, read from its `place`; instead of `complete(_:)`.
    public mutating func complete(_ request: AwaitedRequest, with bytes: RawSpan) {
        requestsInFlight -= 1
        guard !isAbandoned else { return }
        let encoder = request.encoder
        let count = bytes.byteCount
        let before = replies.memoryByteCount
        replies.append(room: encoder.dataHeaderByteCount + count) { buffer in
            encoder.dataHeader(position: encoder.offset, count: count, isLast: true, into: &buffer)
            buffer.writeBytes(bytes)
            return true
        }
        encoder.traceData(position: encoder.offset, count: count)
        account(since: before)
        lease.release(request.cost)
        advance()
    }

    /// A write that the shell has somebody else do, if it has a place.
    func shouldHandOver(_ request: RequestRules.Request) -> Bool {
        placesAreFixed && request.command == .write && request.flags.subtracting(.payloadLength).isEmpty
            && request.count >= writePolicy.handOverFloor && request.count <= Self.nowByteCountLimit
    }

    /// A WRITE that was handed over was written to its place; instead of `complete(_:)`. Or that was tried in vain: then its task is still to be run.
    /// Called also when the connection is lost: there are devices that keep account of writes.
    public mutating func complete(_ request: AwaitedRequest, isWritten: Bool) {
        handedOverCount -= 1
        if let range = ByteRange(start: request.request.offset, count: request.request.count) { mapper?.didWrite(range) }
        guard isWritten else { return }
        requestsInFlight -= 1
        guard !isAbandoned else { return }
        let before = replies.memoryByteCount
        appendSuccess(request.encoder)
        account(since: before)
        lease.release(request.cost)
        advance()
        pool.give(request.payload)
    }

    private mutating func appendSuccess(_ encoder: ReplyEncoder) {
        replies.append(room: ChunkHeader.byteCount(.extended)) {
            encoder.success(into: &$0)
            return true
        }
    }

    private func writeNow(_ payload: ByteBuffer) -> Bool {
        // One segment only. A write that stops half-way is repeated in full by the slow path, with the same bytes at the same place.
        guard let segment = segments.only else { return false }
        guard payload.readableBytes < writePolicy.exclusiveFloor else {
            return writeTurns.take { segment.writeNow(from: payload.readableBytesSpan) }
        }
        return segment.writeNow(from: payload.readableBytesSpan)
    }
}
