import NBDProtocol
import Testing

@testable import NBDTool

private func big<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.appendBigEndian(value)
    return bytes
}

private func simple(_ cookie: UInt64, error: UInt32 = 0, dataCount: Int = 0) -> [UInt8] {
    big(Magic.simpleReply) + big(error) + big(cookie) + [UInt8](repeating: 0xAA, count: dataCount)
}

private func chunk(
    _ type: ChunkType, _ cookie: UInt64, _ payload: [UInt8] = [], done: Bool = true, extended: UInt64? = nil, flags: UInt16? = nil
) -> [UInt8] {
    let magic = extended == nil ? Magic.structuredReply : Magic.extendedReply
    let head = big(magic) + big(flags ?? (done ? 1 : 0)) + big(type.rawValue) + big(cookie)
    if let extended { return head + big(extended) + big(UInt64(payload.count)) + payload }
    return head + big(UInt32(payload.count)) + payload
}

private func data(_ cookie: UInt64, _ offset: UInt64, _ count: Int, done: Bool = true, extended: UInt64? = nil) -> [UInt8] {
    chunk(.offsetData, cookie, big(offset) + [UInt8](repeating: 0x55, count: count), done: done, extended: extended)
}

private func hole(_ cookie: UInt64, _ offset: UInt64, _ count: UInt32, done: Bool = true) -> [UInt8] {
    chunk(.offsetHole, cookie, big(offset) + big(count), done: done)
}

private func failure(_ cookie: UInt64, _ code: UInt32, text: String = "", done: Bool = true) -> [UInt8] {
    chunk(.error, cookie, big(code) + big(UInt16(text.utf8.count)) + Array(text.utf8), done: done)
}

/// One request: READ or WRITE of 512 bytes at this offset.
private typealias Request = (isWrite: Bool, offset: UInt64)

private struct Outcome: Equatable {
    var finished: [UInt64] = []
    var errors: [NBDError] = []
    var violation: ReplyViolation.Kind?
    var waiting = 0
}

/// Feeds the bytes in pieces that end at `cuts`; `sentAt` of request n is n + 1.
private func feed(
    _ requests: [Request], mode: ReplyMode = .structured, cuts: [Int] = [], _ bytes: ([UInt64]) -> [UInt8]
) -> Outcome {
    var replies = BenchReplies(depth: 4, blockByteCount: 512, mode: mode)
    var cookies: [UInt64] = []
    for (index, request) in requests.enumerated() {
        cookies.append(replies.begin(isWrite: request.isWrite, at: request.offset, sentAt: UInt64(index) + 1).cookie)
    }
    let bytes = bytes(cookies)
    var outcome = Outcome()
    var inbox: [UInt8] = []
    var position = 0
    for end in cuts + [bytes.count] {
        inbox += bytes[position..<end]
        position = end
        do throws(ReplyViolation) {
            let count = try replies.receive(inbox.span.bytes)
            inbox.removeFirst(count)
        } catch {
            outcome.violation = error.kind
            break
        }
        while let reply = replies.takeFinished() {
            outcome.finished.append(reply.sentAt)
            if let error = reply.error { outcome.errors.append(error) }
        }
    }
    outcome.finished.sort()
    outcome.waiting = replies.waitingCount
    return outcome
}

private let read: Request = (false, 1024)
private let write: Request = (true, 1024)

@Suite struct `Replies to a load` {
    @Test func `are requests with their cookies first`() {
        var replies = BenchReplies(depth: 2, blockByteCount: 512, mode: .extended)
        #expect(replies.freeCount == 2)
        let first = replies.begin(isWrite: true, at: 512, sentAt: 1)
        let second = replies.begin(isWrite: false, at: 0, sentAt: 1)
        #expect(replies.freeCount == 0)
        #expect(replies.waitingCount == 2)
        #expect(first == RequestHeader(flags: .payloadLength, command: .write, cookie: first.cookie, offset: 512, length: 512))
        #expect(second == RequestHeader(command: .read, cookie: second.cookie, offset: 0, length: 512))
        #expect(first.cookie != second.cookie)
    }

    @Test func `without structure are simple`() {
        let done = feed([read, write], mode: .simple) { simple($0[0], dataCount: 512) + simple($0[1]) }
        #expect(done == Outcome(finished: [1, 2]))
    }

    @Test func `without structure may be errors, which have no data`() {
        let done = feed([read, write], mode: .simple) { simple($0[0], error: 5) + simple($0[1], error: 28) }
        #expect(done.finished == [1, 2])
        #expect(Set(done.errors) == [.inputOutput, .noSpace])
    }

    /// Every kind of good reply, requests answered in another order and by turns.
    private func mixed(_ cookies: [UInt64]) -> [UInt8] {
        data(cookies[1], 1024 + 256, 256, done: false) + data(cookies[0], 0, 512) + hole(cookies[1], 1024, 256, done: false)
            + failure(cookies[2], 5, text: "disk on fire", done: false) + chunk(.none, cookies[1]) + chunk(.none, cookies[2])
            + chunk(.none, cookies[3])
    }
    private let mixedRequests: [Request] = [(false, 0), (false, 1024), (false, 0), (true, 0)]
    private let mixedOutcome = Outcome(finished: [1, 2, 3, 4], errors: [.inputOutput])

    @Test func `come in chunks, in any order`() {
        #expect(feed(mixedRequests, mixed) == mixedOutcome)
    }

    @Test func `may be cut at every byte`() {
        let count = mixed([0, 1, 2, 3]).count
        for cut in 0...count { #expect(feed(mixedRequests, cuts: [cut], mixed) == mixedOutcome, "\(cut)") }
        #expect(feed(mixedRequests, cuts: Array(1..<count), mixed) == mixedOutcome)
    }

    @Test func `with extended headers repeat the offset`() {
        #expect(feed([read], mode: .extended) { data($0[0], 1024, 512, extended: 1024) } == Outcome(finished: [1]))
        #expect(
            feed([read], mode: .extended) { data($0[0], 1024, 512, extended: 1025) }.violation == .wrongRequestOffset(1025))
        #expect(feed([read], mode: .extended) { data($0[0], 1024, 512) }.violation == .badMagic(Magic.structuredReply))
    }

    @Test func `are simple for a WRITE also among chunks, but not for a READ`() {
        #expect(feed([write]) { simple($0[0]) } == Outcome(finished: [1]))
        #expect(feed([read]) { simple($0[0], dataCount: 512) }.violation == .simpleReply)
        #expect(feed([write], mode: .extended) { simple($0[0]) }.violation == .badMagic(Magic.simpleReply))
        #expect(feed([read], mode: .simple) { data($0[0], 1024, 512) }.violation == .badMagic(Magic.structuredReply))
    }

    @Test func `to nobody are noticed`() {
        for cookie in [4, 1023, 1 << 10, UInt64.max] {
            #expect(feed([read]) { _ in data(cookie, 1024, 512) }.violation == .unknownCookie, "\(cookie)")
        }
        #expect(feed([write]) { simple($0[0]) + simple($0[0]) }.violation == .unknownCookie)
    }

    @Test func `sent twice are noticed also when the slot is taken again`() throws {
        var replies = BenchReplies(depth: 1, blockByteCount: 512, mode: .structured)
        let first = replies.begin(isWrite: true, at: 0, sentAt: 0).cookie
        let bytes = simple(first)
        #expect(try replies.receive(bytes.span.bytes) == 16)
        let reply = replies.takeFinished()
        #expect(reply != nil)
        #expect(replies.begin(isWrite: true, at: 0, sentAt: 0).cookie != first)
        #expect(throws: ReplyViolation(.unknownCookie, cookie: first)) { try replies.receive(bytes.span.bytes) }
    }

    @Test func `with too little or too much content are noticed`() {
        #expect(feed([read]) { data($0[0], 1024, 511) }.violation == .missingData(byteCount: 1))
        #expect(feed([read]) { chunk(.none, $0[0]) }.violation == .missingData(byteCount: 512))
        #expect(feed([read]) { data($0[0], 1024, 513) }.violation == .outsideRequest(offset: 1024, byteCount: 513))
        #expect(feed([read]) { data($0[0], 1023, 512) }.violation == .outsideRequest(offset: 1023, byteCount: 512))
        #expect(feed([read]) { hole($0[0], .max, 1) }.violation == .outsideRequest(offset: .max, byteCount: 1))
        #expect(feed([read]) { hole($0[0], 1024, .max) }.violation == .outsideRequest(offset: 1024, byteCount: UInt64(UInt32.max)))
        #expect(
            feed([read]) { data($0[0], 1024, 512, done: false) + hole($0[0], 1024, 1) }.violation == .overlap(offset: 1024, byteCount: 1))
    }

    @Test func `that break the rules of chunks are noticed`() {
        let cases: [(String, ReplyViolation.Kind, Bool, (UInt64) -> [UInt8])] = [
            ("magic", .badMagic(0), false, { _ in [UInt8](repeating: 0, count: 20) }),
            ("flags", .unknownFlags(ChunkFlags(rawValue: 3)), false, { chunk(.none, $0, flags: 3) }),
            ("type", .unknownChunk(ChunkType(rawValue: 9)), false, { chunk(ChunkType(rawValue: 9), $0) }),
            ("status", .misplacedChunk(.blockStatus), false, { chunk(.blockStatus, $0) }),
            ("data for a WRITE", .misplacedChunk(.offsetData), true, { data($0, 1024, 512) }),
            ("hole for a WRITE", .misplacedChunk(.offsetHole), true, { hole($0, 1024, 512) }),
            ("NONE that goes on", .noneWithoutDone, true, { chunk(.none, $0, done: false) }),
            ("NONE with bytes", .badLength(.none, 1), true, { chunk(.none, $0, [0]) }),
            ("data without bytes", .badLength(.offsetData, 8), false, { data($0, 1024, 0) }),
            ("hole of nothing", .badLength(.offsetHole, 12), false, { hole($0, 1024, 0) }),
            ("long hole", .badLength(.offsetHole, 13), false, { chunk(.offsetHole, $0, [UInt8](repeating: 0, count: 13)) }),
            ("short error", .badLength(.error, 5), true, { chunk(.error, $0, [0, 0, 0, 5, 0]) }),
            ("long error", .badLength(.error, 4161), true, { chunk(.error, $0, [UInt8](repeating: 1, count: 4161)) }),
            ("error 0", .errorWithoutCode, true, { failure($0, 0) }),
        ]
        for (name, kind, isWrite, bytes) in cases {
            #expect(feed([isWrite ? write : read]) { bytes($0[0]) }.violation == kind, "\(name)")
        }
    }

    @Test func `that failed need no data`() {
        let done = feed([read]) { data($0[0], 1024, 100, done: false) + failure($0[0], 5) }
        #expect(done == Outcome(finished: [1], errors: [.inputOutput]))
    }

    @Test func `keep slots that are not answered`() {
        #expect(feed([read, write]) { simple($0[1]) } == Outcome(finished: [2], waiting: 1))
        #expect(feed([read]) { Array(data($0[0], 1024, 512).dropLast()) } == Outcome(waiting: 1))
    }
}
