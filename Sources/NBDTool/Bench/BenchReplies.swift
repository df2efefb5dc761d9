import NBDProtocol

/// The requests of one connection that are in flight, and what the server says to them. No socket, no clock, no memory taken for a request.
///
/// `ReplyDecoder` checks more (overlaps between chunks, texts), and for that keeps a dictionary and lists for each request: 1.3 µs for a READ,
/// where a whole round trip costs the client 1 µs here. Here a request has a slot, and its cookie names the slot and how often slots were taken
/// before: a reply sent twice, or to nobody, is noticed all the same.
struct BenchReplies: ~Copyable {
    /// Every request has this many bytes.
    let blockByteCount: UInt64
    let mode: ReplyMode

    // Not private: the compiler (6.3.1) breaks on a private type as the argument of a generic one in another file.
    struct Slot: BitwiseCopyable {
        var cookie: UInt64 = 0
        var offset: UInt64 = 0
        var sentAt: UInt64 = 0
        /// Bytes of a READ that no chunk has told of yet.
        var missing: UInt64 = 0
        /// 0: none.
        var error: UInt32 = 0
        var isWrite = false
        var isWaiting = false

        var command: Command { isWrite ? .write : .read }
    }
    private var slots: BenchTable<Slot>
    private var free: BenchStack
    /// Slots whose reply is complete.
    private var finished: BenchStack
    private var takenCount: UInt64 = 0

    /// The payload that is being skipped.
    private var payloadLeft: UInt64 = 0
    private var payloadSlot = 0
    private var isPayloadLast = false

    private static let slotMask: UInt64 = 1023

    /// - Precondition: `depth` is within `BenchPlan.depthRange`.
    init(depth: Int, blockByteCount: UInt64, mode: ReplyMode) {
        precondition(BenchPlan.depthRange.contains(depth), "the slot must fit into the cookie")
        self.blockByteCount = blockByteCount
        self.mode = mode
        slots = BenchTable(repeating: Slot(), count: depth)
        finished = BenchStack(capacity: depth)
        free = BenchStack(capacity: depth)
        for index in (0..<depth).reversed() { free.push(index) }
    }

    /// Requests whose reply is not complete.
    var waitingCount: Int { slots.count - free.count - finished.count }

    var freeCount: Int { free.count }

    /// Takes a slot and gives the request to send.
    ///
    /// - Precondition: `freeCount` is not 0.
    @inline(__always)
    mutating func begin(isWrite: Bool, at offset: UInt64, sentAt: UInt64) -> RequestHeader {
        guard let index = free.pop() else { preconditionFailure("no slot is free") }
        let cookie = takenCount &* (Self.slotMask + 1) | UInt64(truncatingIfNeeded: index)
        takenCount &+= 1
        slots[index] = Slot(
            cookie: cookie, offset: offset, sentAt: sentAt, missing: isWrite ? 0 : blockByteCount, isWrite: isWrite, isWaiting: true)
        return RequestHeader(
            flags: isWrite && mode == .extended ? .payloadLength : [], command: isWrite ? .write : .read, cookie: cookie, offset: offset,
            length: blockByteCount)
    }

    /// Gives a slot back whose reply is complete; nil: there is none.
    @inline(__always)
    mutating func takeFinished() -> (isWrite: Bool, sentAt: UInt64, error: NBDError?)? {
        guard let index = finished.pop() else { return nil }
        free.push(index)
        let error = slots[index].error
        return (slots[index].isWrite, slots[index].sentAt, error == 0 ? nil : NBDError(rawValue: error))
    }

    /// Takes bytes of the server, and says how many: the others must come again, with more behind them.
    ///
    /// - Throws: `ReplyViolation`, after which nothing more may be fed.
    mutating func receive(_ bytes: RawSpan) throws(ReplyViolation) -> Int {
        var position = 0
        while true {
            let here = bytes.byteCount - position
            if payloadLeft > 0 {
                let count = min(payloadLeft, UInt64(here))
                payloadLeft -= count
                position += Int(count)
                guard payloadLeft == 0 else { return position }
                if isPayloadLast { try finish(payloadSlot) }
                continue
            }
            let count = try receiveHead(bytes.extracting(droppingFirst: position))
            guard count > 0 else { return position }
            position += count
        }
    }

    /// A head and what is needed of its payload: bytes taken, or 0 if there are too few.
    private mutating func receiveHead(_ bytes: RawSpan) throws(ReplyViolation) -> Int {
        // The shorter of the two heads: no error is made, and no memory taken for it, where a piece merely ends.
        guard bytes.byteCount >= SimpleReply.byteCount else { return 0 }
        var input = WireReader(bytes)
        do {
            let magic: UInt32 = try input.read()
            if magic == Magic.simpleReply, mode != .extended {
                try receive(SimpleReply(afterMagic: &input))
            } else if mode != .simple, magic == (mode == .extended ? Magic.extendedReply : Magic.structuredReply) {
                guard bytes.byteCount >= ChunkHeader.byteCount(mode) else { return 0 }
                guard try receive(ChunkHeader(afterMagic: &input, mode: mode), &input) else { return 0 }
            } else {
                throw ReplyViolation(.badMagic(magic))
            }
        } catch let violation as ReplyViolation {
            throw violation
        } catch {
            return 0
        }
        return bytes.byteCount - input.byteCount
    }

    private mutating func receive(_ reply: SimpleReply) throws(ReplyViolation) {
        let index = try slot(of: reply.cookie)
        let isRead = !slots[index].isWrite
        guard mode == .simple || !isRead else { throw ReplyViolation(.simpleReply, cookie: reply.cookie, command: .read) }
        slots[index].error = reply.error?.rawValue ?? 0
        if isRead, reply.error == nil {
            slots[index].missing = 0
            skip(blockByteCount, of: index, isLast: true)
        } else {
            try finish(index)
        }
    }

    /// false: the payload's first bytes are still to come, and nothing has changed.
    private mutating func receive(_ head: ChunkHeader, _ input: inout WireReader) throws -> Bool {
        let index = try slot(of: head.cookie)
        let slot = slots[index]
        func violation(_ kind: ReplyViolation.Kind) -> ReplyViolation { ReplyViolation(kind, cookie: head.cookie, command: slot.command) }

        guard head.flags.isSubset(of: .done) else { throw violation(.unknownFlags(head.flags)) }
        guard mode != .extended || head.requestOffset == slot.offset else {
            throw violation(.wrongRequestOffset(head.requestOffset))
        }
        let isLast = head.flags.contains(.done)
        var badLength: ReplyViolation { violation(.badLength(head.type, head.byteCount)) }
        switch head.type {
        case .none:
            guard head.byteCount == 0 else { throw badLength }
            guard isLast else { throw violation(.noneWithoutDone) }
        case .offsetData, .offsetHole:
            guard !slot.isWrite else { throw violation(.misplacedChunk(head.type)) }
            let isHole = head.type == .offsetHole
            guard isHole ? head.byteCount == 12 : head.byteCount > 8 else { throw badLength }
            guard input.byteCount >= (isHole ? 12 : 8) else { return false }
            let offset: UInt64 = try input.read()
            let count = isHole ? UInt64(try input.read(UInt32.self)) : head.byteCount - 8
            guard count > 0 else { throw badLength }
            let start = offset &- slot.offset
            guard offset >= slot.offset, start <= blockByteCount, count <= blockByteCount - start else {
                throw violation(.outsideRequest(offset: offset, byteCount: count))
            }
            // Of pieces that overlap only the sum is seen; `ReplyDecoder` sees each.
            guard count <= slot.missing else { throw violation(.overlap(offset: offset, byteCount: count)) }
            slots[index].missing = slot.missing - count
            if !isHole {
                skip(count, of: index, isLast: isLast)
                return true
            }
        case .blockStatus, .blockStatusExtended:
            throw violation(.misplacedChunk(head.type))
        default:
            guard head.type.isError else { throw violation(.unknownChunk(head.type)) }
            guard (6...Self.errorPayloadByteCountLimit).contains(head.byteCount) else { throw badLength }
            guard input.byteCount >= 4 else { return false }
            let code: UInt32 = try input.read()
            guard code != 0 else { throw violation(.errorWithoutCode) }
            slots[index].error = code
            skip(head.byteCount - 4, of: index, isLast: isLast)
            return true
        }
        if isLast { try finish(index) }
        return true
    }

    /// The longest text, and what kinds of errors not known yet may add.
    private static let errorPayloadByteCountLimit = UInt64(stringByteCountLimit + 64)

    private func slot(of cookie: UInt64) throws(ReplyViolation) -> Int {
        let index = Int(cookie & Self.slotMask)
        guard index < slots.count, slots[index].isWaiting, slots[index].cookie == cookie else {
            throw ReplyViolation(.unknownCookie, cookie: cookie)
        }
        return index
    }

    private mutating func skip(_ byteCount: UInt64, of index: Int, isLast: Bool) {
        payloadLeft = byteCount
        payloadSlot = index
        isPayloadLast = isLast
    }

    private mutating func finish(_ index: Int) throws(ReplyViolation) {
        guard slots[index].missing == 0 || slots[index].error != 0 else {
            let slot = slots[index]
            throw ReplyViolation(.missingData(byteCount: slot.missing), cookie: slot.cookie, command: slot.command)
        }
        slots[index].isWaiting = false
        finished.push(index)
    }
}
