import NBDProtocol
import Testing

private func big<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.appendBigEndian(value)
    return bytes
}

private func words(_ values: UInt32...) -> [UInt8] { values.flatMap { big($0) } }

private func simple(_ cookie: UInt64, error: UInt32 = 0, data: [UInt8] = []) -> [UInt8] {
    big(Magic.simpleReply) + big(error) + big(cookie) + data
}

/// A chunk as a server encodes it; `length` lies about the payload.
private func chunk(
    _ type: ChunkType, _ cookie: UInt64, _ payload: [UInt8] = [], flags: UInt16 = 0, mode: ReplyMode = .structured,
    at offset: UInt64 = 1000,
    length: UInt64? = nil
) -> [UInt8] {
    let length = length ?? UInt64(payload.count)
    let head = big(mode == .extended ? Magic.extendedReply : Magic.structuredReply) + big(flags) + big(type.rawValue) + big(cookie)
    return head + (mode == .extended ? big(offset) + big(length) : big(UInt32(length))) + payload
}

private func data(_ offset: UInt64, _ count: Int, flags: UInt16 = 0) -> [UInt8] {
    chunk(.offsetData, 1, big(offset) + (0..<count).map { UInt8(truncatingIfNeeded: offset + UInt64($0)) }, flags: flags)
}

private func hole(_ offset: UInt64, _ count: UInt32, flags: UInt16 = 0) -> [UInt8] {
    chunk(.offsetHole, 1, big(offset) + big(count), flags: flags)
}

private func error(_ code: UInt32, _ text: String = "", flags: UInt16 = 1) -> [UInt8] {
    chunk(.error, 1, big(code) + big(UInt16(text.utf8.count)) + text.utf8, flags: flags)
}

private func errorOffset(_ code: UInt32, _ offset: UInt64, flags: UInt16 = 0) -> [UInt8] {
    chunk(.errorOffset, 1, big(code) + big(UInt16(0)) + big(offset), flags: flags)
}

private func status(_ context: UInt32, _ extents: [(UInt32, UInt32)], flags: UInt16 = 0) -> [UInt8] {
    chunk(.blockStatus, 1, big(context) + extents.flatMap { big($0.0) + big($0.1) }, flags: flags)
}

private func statusExtended(_ context: UInt32, count: UInt32, _ extents: [(UInt64, UInt64)], flags: UInt16 = 0) -> [UInt8] {
    chunk(.blockStatusExtended, 1, big(context) + big(count) + extents.flatMap { big($0.0) + big($0.1) }, flags: flags, mode: .extended)
}

/// A run of the decoder with data put together, so that runs in different pieces can be compared.
private struct Run: Equatable {
    var events: [ReplyEvent] = []
    var bytes: [UInt64: UInt8] = [:]
    var violation: ReplyViolation.Kind?
    var left = 0
}

private let contexts = [MetaContext(id: 7, name: "base:allocation"), MetaContext(id: 9, name: "qemu:dirty-bitmap:x")]

private func run(
    _ bytes: [UInt8], _ requests: [RequestHeader], mode: ReplyMode = .structured, cuts: [Int] = []
) -> Run {
    var decoder = ReplyDecoder(mode: mode, contexts: contexts)
    for request in requests {
        let isNew = decoder.expect(request)
        #expect(isNew)
    }
    var result = Run()
    var inbox: [UInt8] = []
    var position = 0
    for end in cuts + [bytes.count] {
        inbox += bytes[position..<end]
        position = end
        while true {
            do {
                let (consumed, event) = try decoder.receive(inbox.rawSpan)
                defer { inbox.removeFirst(consumed) }
                if case .read(let needed) = event {
                    #expect(needed > inbox.count - consumed, "it must not ask for what it has")
                    break
                }
                if case .data(let cookie, let offset, let range, let isStart) = event {
                    for (index, byte) in inbox[range].enumerated() { result.bytes[offset + UInt64(index)] = byte }
                    // Where a piece ends depends on the cuts, where a chunk begins does not.
                    if isStart { result.events.append(.data(cookie: cookie, offset: offset, range: 0..<0, isStart: true)) }
                } else {
                    result.events.append(event)
                }
            } catch {
                result.violation = error.kind
                return result
            }
        }
    }
    result.left = inbox.count
    return result
}

private func header(_ command: Command, _ length: UInt64 = 100, flags: CommandFlags = [], cookie: UInt64 = 1) -> RequestHeader {
    RequestHeader(flags: flags, command: command, cookie: cookie, offset: 1000, length: length)
}

private let read = header(.read)

@Suite struct `Reply decoder` {
    @Test func `takes simple replies`() {  // P-REP-01, P-CMD-READ-1, S-REP-01
        let replies = simple(2, error: 28) + simple(1, data: [5, 6, 7]) + simple(3)
        let result = run(replies, [header(.read, 3), header(.write, 5, cookie: 2), header(.flush, cookie: 3)], mode: .simple)
        #expect(
            result.events == [
                .error(cookie: 2, error: ReplyError(code: .noSpace)), .finished(cookie: 2, isSimple: true),
                .data(cookie: 1, offset: 1000, range: 0..<0, isStart: true), .finished(cookie: 1, isSimple: true),
                .finished(cookie: 3, isSimple: true),
            ])
        #expect(result.bytes == [1000: 5, 1001: 6, 1002: 7])
        #expect(result.violation == nil && result.left == 0)
    }

    @Test func `takes a simple READ that failed, or was empty`() {  // P-CMD-READ-1, S-CMD-03
        #expect(run(simple(1, error: 5), [read], mode: .simple).events.count == 2)
        #expect(run(simple(1), [header(.read, 0)], mode: .simple).events == [.finished(cookie: 1, isSimple: true)])
    }

    @Test func `takes chunks in any order, of several replies at once`() {  // P-CMD-READ-2, P-REP-04, P-REP-05
        let bytes = data(1050, 25) + chunk(.none, 2, flags: 1) + hole(1000, 50) + simple(3) + data(1075, 25, flags: 1)
        let result = run(bytes, [read, header(.trim, cookie: 2), header(.flush, cookie: 3)])
        #expect(
            result.events == [
                .data(cookie: 1, offset: 1050, range: 0..<0, isStart: true), .finished(cookie: 2, isSimple: false),
                .hole(cookie: 1, offset: 1000, byteCount: 50), .finished(cookie: 3, isSimple: true),
                .data(cookie: 1, offset: 1075, range: 0..<0, isStart: true), .finished(cookie: 1, isSimple: false),
            ])
        #expect(result.bytes.count == 50 && result.bytes.allSatisfy { $0.value == UInt8(truncatingIfNeeded: $0.key) })
    }

    private static let transcript: [UInt8] = {
        let nine = chunk(.blockStatus, 2, words(9, 8, 1))
        let seven = chunk(.blockStatus, 2, words(7, 8, 3, 200, 0), flags: 1)
        let first: [UInt8] = data(1050, 25) + nine + seven + hole(1000, 50) + simple(3)
        let second: [UInt8] = errorOffset(5, 1090) + data(1075, 10) + error(5, "bad \u{7} spot") + simple(4, error: 1)
        return first + second
    }()
    private static let requests = [read, header(.blockStatus, cookie: 2), header(.flush, cookie: 3), header(.write, cookie: 4)]

    @Test func `goes the same way wherever the bytes are cut`() {
        let whole = run(Self.transcript, Self.requests)
        #expect(whole.violation == nil && whole.left == 0)
        #expect(whole.events.contains(.error(cookie: 1, error: ReplyError(code: .inputOutput, text: "bad ? spot"))))
        #expect(whole.events.contains(.error(cookie: 1, error: ReplyError(code: .inputOutput, offset: 1090))))
        for cut in 0...Self.transcript.count { #expect(run(Self.transcript, Self.requests, cuts: [cut]) == whole, "cut at \(cut)") }
        #expect(run(Self.transcript, Self.requests, cuts: Array(0...Self.transcript.count)) == whole)
    }

    @Test func `takes extended chunks`() {  // P-EXT-10, P-EXT-11, P-EXT-12
        let bytes =
            statusExtended(9, count: 1, [(1 << 40, 1 << 40)]) + statusExtended(7, count: 2, [(50, 3), (1 << 50, 0)], flags: 1)
            + chunk(.none, 2, flags: 1, mode: .extended)
        let result = run(bytes, [header(.blockStatus), header(.flush, cookie: 2)], mode: .extended)
        #expect(
            result.events == [
                .extents(cookie: 1, context: 9, extents: [StatusExtent(byteCount: 1 << 40, flags: 1 << 40)]),
                .extents(
                    cookie: 1, context: 7, extents: [StatusExtent(byteCount: 50, flags: 3), StatusExtent(byteCount: 1 << 50, flags: 0)]),
                .finished(cookie: 1, isSimple: false), .finished(cookie: 2, isSimple: false),
            ])
    }

    struct Case: Sendable {
        var bytes: [UInt8]
        var request: RequestHeader
        var mode: ReplyMode
        var kind: ReplyViolation.Kind
    }

    /// One statement each: the compiler takes too long over one big literal.
    static let broken: [Case] = {
        var cases: [Case] = []
        func add(_ bytes: [UInt8], _ request: RequestHeader, _ mode: ReplyMode, _ kind: ReplyViolation.Kind) {
            cases.append(Case(bytes: bytes, request: request, mode: mode, kind: kind))
        }
        // P-REP-01, P-REP-03
        add(simple(1), header(.flush), ReplyMode.extended, ReplyViolation.Kind.badMagic(Magic.simpleReply))
        add(chunk(.none, 1, flags: 1), header(.flush), .simple, .badMagic(Magic.structuredReply))
        add(chunk(.none, 1, flags: 1, mode: .extended), header(.flush), .structured, .badMagic(Magic.extendedReply))
        add(chunk(.none, 1, flags: 1), header(.flush), .extended, .badMagic(Magic.structuredReply))
        add(big(Magic.request), read, .simple, .badMagic(Magic.request))
        // P-REP-02
        add(simple(1, data: []), read, .structured, .simpleReply)
        add(simple(1, error: 5), read, .structured, .simpleReply)
        add(simple(1), header(.blockStatus), .structured, .simpleReply)
        add(simple(1), header(.blockStatus), .simple, .simpleReply)
        // P-REP-04, P-REQ-02
        add(simple(2), header(.flush), .simple, .unknownCookie)
        add(chunk(.none, 2, flags: 1), header(.flush), .structured, .unknownCookie)
        add(chunk(.none, 1, flags: 1) + chunk(.none, 1, flags: 1), header(.flush), .structured, .unknownCookie)
        add(simple(1) + simple(1), header(.flush), .simple, .unknownCookie)
        // P-REP-09, P-REP-10, P-REP-06
        add(chunk(.none, 1, flags: 3), header(.flush), .structured, .unknownFlags(ChunkFlags(rawValue: 3)))
        add(chunk(ChunkType(rawValue: 3), 1, flags: 1), read, .structured, .unknownChunk(ChunkType(rawValue: 3)))
        add(chunk(.none, 1), header(.flush), .structured, .noneWithoutDone)
        add(chunk(.none, 1, [0], flags: 1), header(.flush), .structured, .badLength(.none, 1))
        // P-CMD-READ-2
        add(data(1000, 99, flags: 1), read, .structured, .missingData(byteCount: 1))
        add(data(1000, 50) + chunk(.none, 1, flags: 1), read, .structured, .missingData(byteCount: 50))
        add(chunk(.none, 1, flags: 1), read, .structured, .missingData(byteCount: 100))
        add(data(999, 2), read, .structured, .outsideRequest(offset: 999, byteCount: 2))
        add(data(1099, 2), read, .structured, .outsideRequest(offset: 1099, byteCount: 2))
        add(data(1100, 1), read, .structured, .outsideRequest(offset: 1100, byteCount: 1))
        add(data(.max, 1), read, .structured, .outsideRequest(offset: .max, byteCount: 1))
        add(data(0, 1), read, .structured, .outsideRequest(offset: 0, byteCount: 1))
        add(hole(1001, 100), read, .structured, .outsideRequest(offset: 1001, byteCount: 100))
        add(hole(.max, .max), read, .structured, .outsideRequest(offset: .max, byteCount: UInt64(UInt32.max)))
        add(data(1000, 50) + data(1049, 1), read, .structured, .overlap(offset: 1049, byteCount: 1))
        add(data(1000, 50) + hole(1000, 50), read, .structured, .overlap(offset: 1000, byteCount: 50))
        add(data(1010, 5) + data(1000, 11), read, .structured, .overlap(offset: 1000, byteCount: 11))
        add(data(1010, 5) + hole(1000, 100), read, .structured, .overlap(offset: 1000, byteCount: 100))
        add(hole(1000, 0), read, .structured, .badLength(.offsetHole, 0))
        add(chunk(.offsetData, 1, big(UInt64(1000))), read, .structured, .badLength(.offsetData, 8))
        add(chunk(.offsetHole, 1, big(UInt64(1000))), read, .structured, .badLength(.offsetHole, 8))
        add(
            chunk(.offsetData, 1, big(UInt64(1000)), length: UInt64(UInt32.max)), read, .structured,
            .outsideRequest(offset: 1000, byteCount: UInt64(UInt32.max) - 8))
        // P-CMD-READ-3
        add(data(1000, 50) + data(1050, 50), header(.read, flags: .df), .structured, .fragmented)
        add(data(1000, 50) + hole(1050, 50), header(.read, flags: .df), .structured, .fragmented)
        // P-CMD-READ-5
        add(errorOffset(5, 1010) + data(1000, 20), read, .structured, .contentAfterError(offset: 1010))
        // a chunk that is not for this command
        add(data(1000, 1), header(.write), .structured, .misplacedChunk(.offsetData))
        add(hole(1000, 1), header(.blockStatus), .structured, .misplacedChunk(.offsetHole))
        add(status(7, [(100, 0)]), read, .structured, .misplacedChunk(.blockStatus))
        add(errorOffset(5, 1000), header(.flush), .structured, .misplacedChunk(.errorOffset))  // P-REP-08
        add(statusExtended(7, count: 1, [(100, 0)]), read, .extended, .misplacedChunk(.blockStatusExtended))
        add(chunk(.blockStatus, 1, [], mode: .extended), header(.blockStatus), .extended, .misplacedChunk(.blockStatus))  // P-EXT-11
        add(chunk(.blockStatusExtended, 1), header(.blockStatus), .structured, .misplacedChunk(.blockStatusExtended))
        // P-CMD-BST-1
        add(status(7, [(100, 0)], flags: 1), header(.blockStatus), .structured, .missingContext(9))
        add(status(8, [(100, 0)]), header(.blockStatus), .structured, .unexpectedContext(8))
        add(status(7, [(100, 0)]) + status(7, [(100, 0)]), header(.blockStatus), .structured, .unexpectedContext(7))
        add(chunk(.none, 1, flags: 1), header(.blockStatus), .structured, .missingContext(7))
        // P-CMD-BST-2, P-CMD-BST-3, P-CMD-BST-4
        add(status(7, []), header(.blockStatus), .structured, .badLength(.blockStatus, 4))
        add(chunk(.blockStatus, 1, big(UInt32(7)) + [1]), header(.blockStatus), .structured, .badLength(.blockStatus, 5))
        add(status(7, [(50, 0), (0, 1)]), header(.blockStatus), .structured, .badExtent(index: 1))
        add(status(7, [(100, 0), (1, 1)]), header(.blockStatus), .structured, .badExtent(index: 1))
        add(status(7, [(50, 0), (50, 1)]), header(.blockStatus, flags: .reqOne), .structured, .badExtent(index: 1))
        add(status(7, [(101, 0)]), header(.blockStatus, flags: .reqOne), .structured, .badExtent(index: 0))
        // P-CMD-BST-5: nothing is waited for that we would not keep
        add(
            chunk(.blockStatus, 1, length: 4 + 8 * (1 << 20 + 1)), header(.blockStatus), .structured,
            .badLength(.blockStatus, 4 + 8 * (1 << 20 + 1)))
        // P-EXT-12
        add(statusExtended(7, count: 2, [(100, 0)]), header(.blockStatus), .extended, .badLength(.blockStatusExtended, 24))
        add(statusExtended(7, count: 1, [(100, 1 << 32)]), header(.blockStatus), .extended, .badExtent(index: 0))
        add(statusExtended(9, count: 2, [(50, 0), (.max, 0)]), header(.blockStatus), .extended, .badExtent(index: 1))
        add(
            chunk(.blockStatusExtended, 1, mode: .extended, length: .max), header(.blockStatus), .extended,
            .badLength(.blockStatusExtended, .max))
        // P-EXT-10
        add(chunk(.none, 1, flags: 1, mode: .extended, at: 1001), header(.flush), .extended, .wrongRequestOffset(1001))
        // P-REP-07, P-REP-08, P-GEN-01
        add(error(0), read, .structured, .errorWithoutCode)
        add(chunk(.error, 1, big(UInt32(5)) + big(UInt16(2)) + [65], flags: 1), read, .structured, .badLength(.error, 7))
        add(chunk(.error, 1, big(UInt32(5)) + big(UInt16(0)) + [65], flags: 1), read, .structured, .badLength(.error, 7))
        add(chunk(.error, 1, big(UInt32(5)), flags: 1), read, .structured, .badLength(.error, 4))
        add(chunk(.error, 1, length: 1 << 30), read, .structured, .badLength(.error, 1 << 30))
        add(error(5, String(repeating: "x", count: 4097)), read, .structured, .badText)
        add(chunk(.error, 1, big(UInt32(5)) + big(UInt16(1)) + [0xFF], flags: 1), read, .structured, .badText)
        add(errorOffset(5, 1100), read, .structured, .errorOffsetOutsideRequest(1100))
        add(errorOffset(5, 999), read, .structured, .errorOffsetOutsideRequest(999))
        add(
            chunk(.errorOffset, 1, big(UInt32(5)) + big(UInt16(0)) + [UInt8](repeating: 0, count: 7)), read, .structured,
            .badLength(.errorOffset, 13))
        return cases
    }()

    @Test(arguments: broken.indices)
    func `notices a server that breaks the rules`(index: Int) {
        let bad = Self.broken[index]
        #expect(run(bad.bytes, [bad.request], mode: bad.mode).violation == bad.kind)
        #expect(run(bad.bytes, [bad.request], mode: bad.mode, cuts: Array(0...bad.bytes.count)).violation == bad.kind)
    }

    @Test func `allows what the rules allow`() {
        // A hole for all of a DF read; the last extent beyond the request; a kind of error from a later time; content before its error.
        #expect(run(hole(1000, 100, flags: 1), [header(.read, flags: .df)]).violation == nil)
        #expect(run(status(7, [(99, 0), (1 << 31, 1)]) + status(9, [(1, 0)], flags: 1), [header(.blockStatus)]).violation == nil)
        let later = chunk(ChunkType(rawValue: 0x8009), 1, big(UInt32(22)) + big(UInt16(1)) + [65, 1, 2, 3], flags: 1)
        #expect(run(later, [read]).events.first == .error(cookie: 1, error: ReplyError(code: .invalid, text: "A")))
        #expect(run(data(1000, 20) + errorOffset(5, 1010, flags: 1), [read]).violation == nil)
        #expect(run(chunk(.none, 1, flags: 1), [header(.read, 0)]).violation == nil)
        #expect(run(error(22), [header(Command(rawValue: 99))]).violation == nil)
    }

    @Test func `judges a BLOCK_STATUS with payload by what the payload asks for`() throws {  // P-EXT-14, P-EXT-17
        var decoder = ReplyDecoder(mode: .extended, contexts: contexts)
        _ = decoder.expect(header(.blockStatus, 12, flags: .payloadLength), effectByteCount: 1 << 40, contextIDs: [9])
        let bytes = statusExtended(9, count: 2, [(1 << 39, 0), (1, 1)], flags: 1)
        let (consumed, _) = try decoder.receive(bytes.rawSpan)
        #expect(consumed == bytes.count)
        let nothing: [UInt8] = []
        let (_, last) = try decoder.receive(nothing.rawSpan)
        #expect(last == .finished(cookie: 1, isSimple: false))
        let waiting = decoder.waitingCount
        #expect(waiting == 0)
    }

    @Test func `tells cookies apart`() {  // P-REQ-02
        var decoder = ReplyDecoder(mode: .simple)
        let (first, second) = (decoder.expect(header(.flush)), decoder.expect(header(.flush)))
        #expect(first && !second)
    }

    @Test func `gives up on replies without end`() {
        #expect(run((0..<65).flatMap { _ in error(5, flags: 0) }, [read]).violation == .tooManyChunks)
        // Every second byte of a long READ, so that nothing can be merged.
        let fragments = (0...UInt64(1 << 14)).flatMap { hole(1000 + 2 * $0, 1) }
        #expect(run(fragments, [header(.read, 1 << 20)]).violation == .tooManyChunks)
    }

    @Test func `accepts every way to cut a READ into chunks`() {  // P-CMD-READ-2
        var random = SeededRandom()
        for _ in 0..<300 {
            var borders = Set((0..<Int.random(in: 0...12, using: &random)).map { _ in UInt64.random(in: 1000..<1100, using: &random) })
            borders.formUnion([1000, 1100])
            let sorted = borders.sorted()
            var pieces = zip(sorted, sorted.dropFirst()).map { from, to in
                Bool.random(using: &random) ? hole(from, UInt32(to - from)) : data(from, Int(to - from))
            }
            pieces.shuffle(using: &random)
            let dones = pieces.joined() + chunk(.none, 1, flags: 1)
            #expect(run(Array(dones), [read]).events.last == .finished(cookie: 1, isSimple: false), "seed \(random.seed)")
            let dropped = pieces.dropLast().joined() + chunk(.none, 1, flags: 1)
            guard case .missingData? = run(Array(dropped), [read]).violation else {
                Issue.record("a missing piece went unnoticed, seed \(random.seed)")
                return
            }
        }
    }

    @Test func `survives any bytes from a server`() {
        var random = SeededRandom()
        for _ in 0..<5000 {
            var bytes = Self.transcript
            for _ in 0..<Int.random(in: 1...4, using: &random) {
                let index = Int.random(in: 0..<bytes.count, using: &random)
                bytes[index] = [0, 1, 0x7F, 0x80, 0xFF, bytes[index] ^ 1].randomElement(using: &random) ?? 0
            }
            let cut = Int.random(in: 0...bytes.count, using: &random)
            #expect(run(bytes, Self.requests, cuts: [cut]) == run(bytes, Self.requests), "seed \(random.seed)")
        }
    }

    @Test func `reads back what the encoders wrote`() throws {
        var random = SeededRandom()
        for _ in 0..<500 {
            let cookie = UInt64.random(in: 0...UInt64.max, using: &random)
            let mode: ReplyMode = Bool.random(using: &random) ? .structured : .extended
            let request = RequestHeader(command: .read, cookie: cookie, offset: .random(in: 0..<1 << 62, using: &random), length: 77)
            let header = ChunkHeader(.offsetHole, flags: .done, cookie: cookie, requestOffset: request.offset, byteCount: 12)
            var bytes = [UInt8](rawCapacity: 32) { header.encode(into: &$0, mode: mode) }
            bytes += big(request.offset) + big(UInt32(77))
            let result = run(bytes, [request], mode: mode)
            #expect(
                result.events == [.hole(cookie: cookie, offset: request.offset, byteCount: 77), .finished(cookie: cookie, isSimple: false)])
        }
    }
}
