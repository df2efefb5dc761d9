extension ReplyDecoder {
    /// Checks what a chunk's head tells, and how many bytes of payload must be there before `receive(_:_:)`: bounded, whatever the head says.
    mutating func payloadToBuffer(_ header: ChunkHeader) throws(ReplyViolation) -> Int {
        let cookie = header.cookie
        guard let request = waiting[cookie] else { throw ReplyViolation(.unknownCookie, cookie: cookie) }
        func violation(_ kind: ReplyViolation.Kind) -> ReplyViolation { ReplyViolation(kind, cookie: cookie, command: request.command) }

        guard header.flags.isSubset(of: .done) else { throw violation(.unknownFlags(header.flags)) }
        guard mode != .extended || header.requestOffset == request.offset else {
            throw violation(.wrongRequestOffset(header.requestOffset))
        }
        let badLength = violation(.badLength(header.type, header.byteCount))
        let count = header.byteCount
        switch header.type {
        case .none:
            guard count == 0 else { throw badLength }
            guard header.flags == .done else { throw violation(.noneWithoutDone) }
        case .offsetData:
            guard request.command == .read else { throw violation(.misplacedChunk(header.type)) }
            guard count > 8 else { throw badLength }
            return 8
        case .offsetHole:
            guard request.command == .read else { throw violation(.misplacedChunk(header.type)) }
            guard count == 12 else { throw badLength }
        case .blockStatus, .blockStatusExtended:
            let expected: ChunkType = mode == .extended ? .blockStatusExtended : .blockStatus
            guard request.command == .blockStatus, header.type == expected else { throw violation(.misplacedChunk(header.type)) }
            let (fixed, each): (UInt64, UInt64) = mode == .extended ? (8, 16) : (4, 8)
            guard count > fixed, (count - fixed).isMultiple(of: each), (count - fixed) / each <= Self.extentCountLimit else {
                throw badLength
            }
        case .errorOffset:
            let mayHave: [Command] = [.read, .write, .trim, .cache, .writeZeroes, .blockStatus]
            guard mayHave.contains(request.command) else { throw violation(.misplacedChunk(header.type)) }
            guard (14...UInt64(14 + stringByteCountLimit)).contains(count) else { throw badLength }
        default:
            guard header.type.isError else { throw violation(.unknownChunk(header.type)) }
            guard (6...Self.errorPayloadByteCountLimit).contains(count) else { throw badLength }
        }
        return Int(count)
    }

    /// Takes a chunk whose head was checked and whose payload (of OFFSET_DATA: the offset) is there.
    mutating func receive(_ header: ChunkHeader, _ input: inout WireReader) throws -> ReplyEvent {
        let cookie = header.cookie
        let isLast = header.flags.contains(.done)
        state = isLast ? .finish(cookie: cookie, isSimple: false) : .head
        switch header.type {
        case .none:
            return .read(atLeast: 0)
        case .offsetData:
            let offset: UInt64 = try input.read()
            let byteCount = header.byteCount - 8
            try addContent(cookie, offset, byteCount)
            state = .data(cookie: cookie, offset: offset, left: byteCount, isStart: true, isLast: isLast, isSimple: false)
            return .read(atLeast: 1)
        case .offsetHole:
            let offset: UInt64 = try input.read()
            let byteCount = UInt64(try input.read(UInt32.self))
            guard byteCount > 0 else { throw violation(.badLength(.offsetHole, 0), cookie) }
            try addContent(cookie, offset, byteCount)
            return .hole(cookie: cookie, offset: offset, byteCount: byteCount)
        case .blockStatus, .blockStatusExtended:
            return try receiveExtents(header, &input)
        default:
            return try receiveError(header, &input)
        }
    }

    private func violation(_ kind: ReplyViolation.Kind, _ cookie: UInt64) -> ReplyViolation {
        ReplyViolation(kind, cookie: cookie, command: waiting[cookie]?.command)
    }

    /// Notes a piece of a READ's answer (P-CMD-READ-2, -3, -5).
    private mutating func addContent(_ cookie: UInt64, _ offset: UInt64, _ byteCount: UInt64) throws(ReplyViolation) {
        // Taken out while it changes: so its arrays have one owner and grow without copies.
        guard var request = waiting.removeValue(forKey: cookie) else { throw ReplyViolation(.unknownCookie, cookie: cookie) }
        func violation(_ kind: ReplyViolation.Kind) -> ReplyViolation { ReplyViolation(kind, cookie: cookie, command: .read) }
        guard request.contains(offset, byteCount) else { throw violation(.outsideRequest(offset: offset, byteCount: byteCount)) }
        guard !(request.flags.contains(.df) && request.contentChunkCount > 0) else { throw violation(.fragmented) }
        request.contentChunkCount += 1
        guard request.contentChunkCount <= Self.contentChunkCountLimit else { throw violation(.tooManyChunks) }
        if let failed = request.errorOffsets.first(where: { $0 >= offset && $0 - offset < byteCount }) {
            throw violation(.contentAfterError(offset: failed))
        }
        let start = offset - request.offset
        switch request.covered.insert(start: start, end: start + byteCount) {
        case .inserted: waiting[cookie] = request
        case .overlaps: throw violation(.overlap(offset: offset, byteCount: byteCount))
        case .tooMany: throw violation(.tooManyChunks)
        }
    }

    /// P-CMD-BST-1…4, P-EXT-12.
    private mutating func receiveExtents(_ header: ChunkHeader, _ input: inout WireReader) throws -> ReplyEvent {
        let cookie = header.cookie
        guard let request = waiting[cookie] else { throw ReplyViolation(.unknownCookie, cookie: cookie) }
        let id: UInt32 = try input.read()
        guard let index = request.contexts.firstIndex(of: id) else { throw violation(.unexpectedContext(id), cookie) }
        waiting[cookie]?.contexts.remove(at: index)
        let isExtended = mode == .extended
        let count = isExtended ? (header.byteCount - 8) / 16 : (header.byteCount - 4) / 8
        if isExtended, UInt64(try input.read(UInt32.self)) != count { throw violation(.badLength(header.type, header.byteCount), cookie) }
        let isNarrow = contexts.first { $0.id == id }?.name.hasPrefix("base:") ?? false

        var extents: [StatusExtent] = []
        extents.reserveCapacity(Int(count))
        var position: UInt64 = 0
        for index in 0..<Int(count) {
            let extent =
                isExtended
                ? StatusExtent(byteCount: try input.read(), flags: try input.read())
                : StatusExtent(byteCount: UInt64(try input.read(UInt32.self)), flags: UInt64(try input.read(UInt32.self)))
            // Each begins inside the request; only the last may end outside.
            guard extent.byteCount > 0, index == 0 || position < request.byteCount, !isNarrow || extent.flags <= UInt32.max else {
                throw violation(.badExtent(index: index), cookie)
            }
            let (end, overflows) = position.addingReportingOverflow(extent.byteCount)
            guard !overflows, !request.flags.contains(.reqOne) || index == 0 && end <= request.byteCount else {
                throw violation(.badExtent(index: index), cookie)
            }
            position = end
            extents.append(extent)
        }
        return .extents(cookie: cookie, context: id, extents: extents)
    }

    /// P-REP-07, P-REP-08. Kinds of errors that are not known yet begin like ERROR.
    private mutating func receiveError(_ header: ChunkHeader, _ input: inout WireReader) throws -> ReplyEvent {
        let cookie = header.cookie
        guard let request = waiting[cookie] else { throw ReplyViolation(.unknownCookie, cookie: cookie) }
        var payload = try input.part(Int(header.byteCount))
        let code: UInt32 = try payload.read()
        guard code != 0 else { throw violation(.errorWithoutCode, cookie) }
        let textByteCount = Int(try payload.read(UInt16.self))
        let tail = header.type == .errorOffset ? 8 : 0
        let isKnown = header.type == .error || header.type == .errorOffset
        guard isKnown ? payload.byteCount == textByteCount + tail : payload.byteCount >= textByteCount else {
            throw violation(.badLength(header.type, header.byteCount), cookie)
        }
        guard let text = try? payload.string(textByteCount) else { throw violation(.badText, cookie) }
        var offset: UInt64?
        if header.type == .errorOffset {
            let told: UInt64 = try payload.read()
            guard told >= request.offset, told - request.offset < max(request.byteCount, 1) else {
                throw violation(.errorOffsetOutsideRequest(told), cookie)
            }
            offset = told
            waiting[cookie]?.errorOffsets.append(told)
        }
        guard request.errorCount < Self.errorCountLimit else { throw violation(.tooManyChunks, cookie) }
        waiting[cookie]?.errorCount += 1
        return .error(
            cookie: cookie,
            error: ReplyError(code: NBDError(rawValue: code), text: text.sanitized(limit: stringByteCountLimit), offset: offset))
    }
}
