/// One run of equal status, as told by BLOCK_STATUS.
public struct StatusExtent: Equatable, Sendable {
    public var byteCount: UInt64
    /// Meaning by context: bit 0 HOLE and bit 1 ZERO for `base:allocation`. Above 32 bits only with extended headers.
    public var flags: UInt64

    public init(byteCount: UInt64, flags: UInt64) {
        self.byteCount = byteCount
        self.flags = flags
    }
}

/// A request failed: what the server says about it.
public struct ReplyError: Error, Equatable, Sendable, CustomStringConvertible {
    /// Usually one of the eight values of the protocol; another number is kept as it came.
    public var code: NBDError
    /// Made fit to be shown; empty in simple replies.
    public var text: String
    /// Where, if the server told.
    public var offset: UInt64?

    public init(code: NBDError, text: String = "", offset: UInt64? = nil) {
        self.code = code
        self.text = text
        self.offset = offset
    }

    public var description: String {
        "\(code)" + (offset.map { " at offset \($0)" } ?? "") + (text.isEmpty ? "" : ": \(text)")
    }
}

/// Something a server has replied.
public enum ReplyEvent: Equatable, Sendable {
    /// Nothing can be said before there are this many bytes, counted from those not consumed.
    case read(atLeast: Int)
    /// These of the bytes just received belong at `offset` of the export. `isStart`: a new chunk begins with them.
    case data(cookie: UInt64, offset: UInt64, range: Range<Int>, isStart: Bool)
    case hole(cookie: UInt64, offset: UInt64, byteCount: UInt64)
    case extents(cookie: UInt64, context: UInt32, extents: [StatusExtent])
    case error(cookie: UInt64, error: ReplyError)
    /// The reply is complete. It was a failure if an `error` came before.
    case finished(cookie: UInt64, isSimple: Bool)
}

/// Turns the bytes of a server into events, and knows which requests are waiting, so that it notices everything a server must not do.
///
/// Data are not copied: events tell where they lie in the bytes just passed in. What is kept is small and bounded, whatever the server sends.
/// Spec: proto.md, "Simple reply message", "Structured reply chunk message"; PROTOCOL 10.
public struct ReplyDecoder: ~Copyable {
    public let mode: ReplyMode
    /// Contexts a BLOCK_STATUS without payload is answered for.
    public let contexts: [MetaContext]

    /// What we know of a request on its way, and of its reply so far.
    struct Expectation {
        var command: Command
        var flags: CommandFlags
        var offset: UInt64
        /// The range concerned, in bytes: the effect length.
        var byteCount: UInt64
        var covered = CoveredRanges()
        /// Contexts still to come.
        var contexts: [UInt32] = []
        var contentChunkCount = 0
        var errorCount = 0
        var errorOffsets: [UInt64] = []

        /// Whether the range is free of arithmetic accidents and holds `start`.
        func contains(_ start: UInt64, _ count: UInt64) -> Bool {
            start >= offset && start - offset <= byteCount && count <= byteCount - (start - offset)
        }
    }
    var waiting: [UInt64: Expectation] = [:]

    enum State {
        case head
        case data(cookie: UInt64, offset: UInt64, left: UInt64, isStart: Bool, isLast: Bool, isSimple: Bool)
        case finish(cookie: UInt64, isSimple: Bool)
    }
    var state = State.head

    /// A READ of 32 MiB in pieces of 512 bytes stays below it.
    static let contentChunkCountLimit = 1 << 17
    static let errorCountLimit = 64
    /// P-CMD-BST-5.
    static let extentCountLimit: UInt64 = 1 << 20
    /// Kinds of error chunks not known yet may hold more than the text.
    static let errorPayloadByteCountLimit = UInt64(stringByteCountLimit + 64)

    public init(mode: ReplyMode, contexts: [MetaContext] = []) {
        self.mode = mode
        self.contexts = contexts
    }

    /// How many requests have no complete reply yet.
    public var waitingCount: Int { waiting.count }

    /// Whether the bytes so far end with a whole reply chunk.
    public var isBetweenChunks: Bool { if case .head = state { true } else { false } }

    /// Announces a request that is about to be sent.
    ///
    /// - Parameters:
    ///   - effectByteCount: for a BLOCK_STATUS with payload, the length in that payload; otherwise the header's length counts.
    ///   - contextIDs: for a BLOCK_STATUS with payload, the ids in it; otherwise all selected contexts count.
    /// - Returns: false if a request with this cookie is waiting already: it cannot be told apart.
    public mutating func expect(_ header: RequestHeader, effectByteCount: UInt64? = nil, contextIDs: [UInt32]? = nil) -> Bool {
        guard waiting[header.cookie] == nil else { return false }
        var expectation = Expectation(
            command: header.command, flags: header.flags, offset: header.offset, byteCount: effectByteCount ?? header.length)
        if header.command == .blockStatus { expectation.contexts = contextIDs ?? contexts.map(\.id) }
        waiting[header.cookie] = expectation
        return true
    }

    /// Takes bytes of the server; call again with what is left until the event is `.read`.
    ///
    /// - Throws: `ReplyViolation`, after which nothing more may be fed.
    public mutating func receive(_ bytes: RawSpan) throws(ReplyViolation) -> (consumed: Int, event: ReplyEvent) {
        var consumed = 0
        while true {
            let (count, event) = try step(bytes.extracting(droppingFirst: consumed))
            switch event {
            case .read where count > 0: consumed += count
            case .data(let cookie, let offset, let range, let isStart):
                let shifted = consumed..<(consumed + range.count)
                return (consumed + count, .data(cookie: cookie, offset: offset, range: shifted, isStart: isStart))
            default: return (consumed + count, event)
            }
        }
    }

    /// One message or piece of data. `.read` with bytes consumed means: nothing to tell yet, go on.
    private mutating func step(_ bytes: RawSpan) throws(ReplyViolation) -> (consumed: Int, event: ReplyEvent) {
        switch state {
        case .finish(let cookie, let isSimple):
            state = .head
            try finish(cookie)
            return (0, .finished(cookie: cookie, isSimple: isSimple))
        case .data(let cookie, let offset, let left, let isStart, let isLast, let isSimple):
            guard bytes.byteCount > 0 else { return (0, .read(atLeast: 1)) }
            let count = Int(min(left, UInt64(bytes.byteCount)))
            if UInt64(count) < left {
                state = .data(
                    cookie: cookie, offset: offset + UInt64(count), left: left - UInt64(count), isStart: false, isLast: isLast,
                    isSimple: isSimple)
            } else {
                state = isLast ? .finish(cookie: cookie, isSimple: isSimple) : .head
            }
            return (count, .data(cookie: cookie, offset: offset, range: 0..<count, isStart: isStart))
        case .head:
            return try receiveHead(bytes)
        }
    }

    private mutating func receiveHead(_ bytes: RawSpan) throws(ReplyViolation) -> (consumed: Int, event: ReplyEvent) {
        var input = WireReader(bytes)
        do {
            guard bytes.byteCount >= 4 else { return (0, .read(atLeast: 4)) }
            let magic: UInt32 = try input.read()
            if magic == Magic.simpleReply, mode != .extended {
                guard bytes.byteCount >= SimpleReply.byteCount else { return (0, .read(atLeast: SimpleReply.byteCount)) }
                let reply = try SimpleReply(afterMagic: &input)
                return (SimpleReply.byteCount, try receive(reply) ?? .read(atLeast: 1))
            }
            guard mode != .simple, magic == (mode == .extended ? Magic.extendedReply : Magic.structuredReply) else {
                throw ReplyViolation(.badMagic(magic))
            }
            let headByteCount = ChunkHeader.byteCount(mode)
            guard bytes.byteCount >= headByteCount else { return (0, .read(atLeast: headByteCount)) }
            let header = try ChunkHeader(afterMagic: &input, mode: mode)
            // Checked before any payload is waited for: a length that passes is small.
            let needed = headByteCount + (try payloadToBuffer(header))
            guard bytes.byteCount >= needed else { return (0, .read(atLeast: needed)) }
            let event = try receive(header, &input)
            return (bytes.byteCount - input.byteCount, event)
        } catch let violation as ReplyViolation {
            throw violation
        } catch {
            // Lengths were checked above; a text may still be no text.
            throw ReplyViolation(.badText)
        }
    }

    private mutating func receive(_ reply: SimpleReply) throws(ReplyViolation) -> ReplyEvent? {
        guard let request = waiting[reply.cookie] else { throw ReplyViolation(.unknownCookie, cookie: reply.cookie) }
        let needsChunks = request.command == .blockStatus && reply.error == nil || request.command == .read && mode != .simple
        guard !needsChunks else { throw ReplyViolation(.simpleReply, cookie: reply.cookie, command: request.command) }
        state = .finish(cookie: reply.cookie, isSimple: true)
        if let code = reply.error {
            // Counted as told, so that `finish` does not miss data.
            waiting[reply.cookie]?.errorCount += 1
            return .error(cookie: reply.cookie, error: ReplyError(code: code))
        }
        if request.command == .read, request.byteCount > 0 {
            _ = waiting[reply.cookie]?.covered.insert(start: 0, end: request.byteCount)
            state = .data(
                cookie: reply.cookie, offset: request.offset, left: request.byteCount, isStart: true, isLast: true, isSimple: true)
        }
        return nil
    }

    /// The reply says it is complete: is it?
    private mutating func finish(_ cookie: UInt64) throws(ReplyViolation) {
        guard let request = waiting.removeValue(forKey: cookie), request.errorCount == 0 else { return }
        if request.command == .read, request.covered.byteCount != request.byteCount {
            throw ReplyViolation(.missingData(byteCount: request.byteCount &- request.covered.byteCount), cookie: cookie, command: .read)
        }
        if request.command == .blockStatus, let missing = request.contexts.first {
            throw ReplyViolation(.missingContext(missing), cookie: cookie, command: .blockStatus)
        }
    }
}

/// Which parts of a READ have arrived, as offsets from its start; grows only with the holes between them.
struct CoveredRanges {
    private(set) var byteCount: UInt64 = 0
    /// Ascending, disjoint, not touching.
    private(set) var ranges: [Range<UInt64>] = []
    /// Far above what servers do, and cheap to search.
    static let countLimit = 1 << 14

    enum Outcome { case inserted, overlaps, tooMany }

    mutating func insert(start: UInt64, end: UInt64) -> Outcome {
        // The first range that ends behind `start`, or touches it.
        var low = 0
        var high = ranges.count
        while low < high {
            let middle = (low + high) / 2
            if ranges[middle].upperBound < start { low = middle + 1 } else { high = middle }
        }
        var index = low
        var merged = start..<end
        if index < ranges.count, ranges[index].upperBound == start { index += 1 }
        if index < ranges.count, ranges[index].lowerBound < end { return .overlaps }
        let touchesNext = index < ranges.count && ranges[index].lowerBound == end
        if index > low { merged = ranges[low].lowerBound..<merged.upperBound }
        if touchesNext { merged = merged.lowerBound..<ranges[index].upperBound }
        let replaced = low..<(touchesNext ? index + 1 : index)
        guard !replaced.isEmpty || ranges.count < Self.countLimit else { return .tooMany }
        ranges.replaceSubrange(replaced, with: CollectionOfOne(merged))
        byteCount += end - start
        return .inserted
    }
}
