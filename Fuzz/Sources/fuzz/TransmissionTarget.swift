import Block
import NBDEngine
import NBDProtocol
import NIOCore

/// One client's transmission phase, in each of the three forms of replies. Input: setup, fragmentation, then what the client sends.
///
/// Promises: no trap; every request that arrived in full is answered once, by a reply that our own client's strict decoder accepts, with the
/// right data; memory and requests in flight stay in their bounds and come back to nothing; it never waits for ever.
@Sendable func fuzzTransmission(_ input: [UInt8]) {
    guard input.count >= 2 else { return }
    var run = TransmissionRun(setup: input[0], fragmentation: input[1])
    run.run(Array(input.dropFirst(2)))
}

private struct TransmissionRun: ~Copyable {
    let mode: ReplyMode
    let fragmentation: UInt8
    let isFaulty: Bool
    let shutsDown: Bool
    let contexts: [MetaContext]
    let budget = MemoryBudget(byteCountLimit: 80 << 20)
    let limits: TransmissionLimits
    var engine: Transmission
    /// As the fast face of the server does: one buffer for what arrives, output shown and dropped.
    let isSharing: Bool
    var shared = ByteBuffer()
    var random: Random
    /// What was decoded from the replies: as a client of ours would see it.
    var decoder: ReplyDecoder
    var answered = Set<UInt64>()
    var failed = Set<UInt64>()
    var requests: [UInt64: RequestHeader] = [:]
    var received: [UInt8] = []

    init(setup: UInt8, fragmentation: UInt8) {
        mode = [.simple, .structured, .extended, .structured][Int(setup & 3)]
        let isReadOnly = setup & 4 != 0
        isFaulty = setup & 8 != 0
        isSharing = fragmentation & 0x40 != 0
        shutsDown = setup & 64 != 0
        var limits = TransmissionLimits()
        if setup & 16 != 0 {
            limits.requestLimit = 2
            limits.byteCountLimit = 100_000
            limits.outputByteCountLimit = 1000
        }
        self.limits = limits
        self.fragmentation = fragmentation
        random = Random(seed: UInt64(fragmentation))

        contexts =
            mode == .simple ? [] : setup & 32 != 0 ? [.baseAllocation, MetaContext(id: 7, name: "x-fuzz:second")] : [.baseAllocation]
        var flags: TransmissionFlags = [.hasFlags, .flush, .fua, .cache, .multiConn]
        flags.formUnion(isReadOnly ? .readOnly : [.trim, .writeZeroes, .fastZero])
        if mode != .simple { flags.insert(.df) }
        if mode == .extended { flags.insert(.blockStatusPayload) }
        let export = ExportDescription(id: 1, name: "disk", byteCount: FuzzDevice.byteCount, flags: flags, contexts: contexts)
        var trace: Tracer?
        if fragmentation & 0x80 != 0 { trace = { event in precondition(!event.description.isEmpty) } }
        let device = FuzzDevice(isReadOnly: isReadOnly, isFaulty: isFaulty, isMapped: setup & 128 != 0)
        engine = Transmission(
            session: Session(export: export, flags: flags, mode: mode, contexts: contexts), device: device,
            sources: [7: AllocationDepth(device)], limits: limits, budget: budget, trace: trace, wake: {})
        // As the fast face does for clients over TCP.
        if fragmentation & 1 != 0 { engine.writePolicy.aloneFloor = 0 }
        decoder = ReplyDecoder(mode: mode, contexts: contexts)
    }

    mutating func run(_ conversation: [UInt8]) {
        var conversation = conversation
        let expected = readAsClient(&conversation)
        var fed = 0
        var work: [AwaitedRequest] = []
        var output: [ByteBuffer] = []
        var hasEnded = false
        if shutsDown { engine.beginShutdown() }

        while true {
            work += engine.takeWork()
            if !isSharing { output += engine.takeOutput() }
            let inFlight = engine.requestsInFlight
            precondition(inFlight <= limits.requestLimit, "too many requests in flight")
            // The lease takes whole quanta; one request may be as large as it likes.
            precondition(budget.used <= limits.byteCountLimit + (36 << 20), "holds \(budget.used) bytes")
            // What to do next is the input's choice: feed, complete any request, or let replies leave.
            var choices: [Int] = []
            if engine.wantsBytes, fed < conversation.count { choices.append(0) }
            if !work.isEmpty { choices.append(1) }
            if !output.isEmpty || engine.outputByteCount > 0 { choices.append(2) }
            if fed == conversation.count, !hasEnded, choices.isEmpty { choices.append(3) }
            guard let choice = choices.randomElement(using: &random) else { break }
            switch choice {
            case 0:
                let count = min(random.pieceByteCount(fragmentation), conversation.count - fed)
                if isSharing {
                    let piece = conversation[fed..<(fed + count)]
                    fed += engine.receive(sharing: &shared) { output, limit in
                        for byte in piece.prefix(limit) { output.append(byte) }
                        return min(limit, count)
                    }
                } else {
                    engine.receive(ByteBuffer(bytes: conversation[fed..<(fed + count)]))
                    fed += count
                }
            case 1:
                let request = work.remove(at: Int.random(in: 0..<work.count, using: &random))
                engine.complete(runToEnd { await request.run() })
            case 2:
                if isSharing {
                    // A long reply does not leave byte by byte: that would take minutes.
                    let limit = max(random.pieceByteCount(fragmentation), engine.outputByteCount / 64)
                    var sink = Sink(limit: limit)
                    engine.showOutput(to: &sink)
                    received += sink.bytes.readableBytesView
                    decode()
                    engine.dropOutput(sink.bytes.readableBytes)
                    engine.proceed()
                } else {
                    let buffer = output.removeFirst()
                    received += buffer.readableBytesView
                    decode()
                    engine.didSend(buffer.readableBytes)
                }
            default:
                hasEnded = true
                engine.endOfInput()
            }
        }

        let isFinished = engine.isFinished
        precondition(isFinished, "waits for ever")
        precondition(received.isEmpty && decoder.isBetweenChunks, "half a reply")
        precondition(answered == expected, "answered \(answered.count) of \(expected.count) requests")
        engine.abandon()
        precondition(budget.used == 0, "keeps \(budget.used) bytes")
    }

    /// Reads the conversation the simple way; gives each request a cookie of its own; returns the cookies that must be answered.
    private mutating func readAsClient(_ conversation: inout [UInt8]) -> Set<UInt64> {
        var expected = Set<UInt64>()
        var at = 0
        let head = RequestHeader.byteCount(mode)
        while conversation.count - at >= head {
            let cookie = UInt64(at) << 32 | 0x5EED
            for i in 0..<8 { conversation[at + 8 + i] = UInt8(truncatingIfNeeded: cookie >> (56 - 8 * UInt64(i))) }
            // SAFETY: bytes have no padding.
            var reader = unsafe WireReader(conversation.span.bytes.extracting(droppingFirst: at))
            guard let header = try? RequestHeader(from: &reader, mode: mode), header.command != .disconnect else { break }
            at += head
            let hasPayload = header.command == .write || mode == .extended && header.flags.contains(.payloadLength)
            if hasPayload, header.length > 32 << 20 {
                // Answered and closed, or closed at once (S-REQ-08, P-EXT-08).
                if mode != .extended { expect(header, &expected) }
                break
            }
            guard !hasPayload || conversation.count - at >= Int(header.length) else { break }
            var filter: (UInt64, [UInt32])?
            if hasPayload, header.command == .blockStatus, header.length >= 8 {
                guard let bytes: UInt64 = try? reader.read() else { break }
                var ids: [UInt32] = []
                for _ in 0..<min((header.length - 8) / 4, 100) { ids.append((try? reader.read()) ?? 0) }
                filter = (bytes, ids)
            }
            expect(header, &expected, filter)
            if hasPayload { at += Int(header.length) }
        }
        return expected
    }

    private mutating func expect(_ header: RequestHeader, _ expected: inout Set<UInt64>, _ filter: (UInt64, [UInt32])? = nil) {
        precondition(decoder.expect(header, effectByteCount: filter?.0, contextIDs: filter?.1), "cookie used twice")
        expected.insert(header.cookie)
        requests[header.cookie] = header
    }

    private mutating func decode() {
        var bytes = received
        defer { received = bytes }
        received = []
        do throws(ReplyViolation) {
            while true {
                // SAFETY: bytes have no padding.
                let (consumed, event) = unsafe try decoder.receive(bytes.span.bytes)
                switch event {
                case .read:
                    bytes.removeFirst(consumed)
                    if consumed == 0 || bytes.isEmpty { return }
                    continue
                case .data(_, let offset, let range, _):
                    for (index, place) in range.enumerated() {
                        precondition(bytes[place] == FuzzDevice.byte(at: offset + UInt64(index)), "wrong data at \(offset)")
                    }
                case .hole(_, let offset, let count):
                    for place in stride(from: offset, to: offset + count, by: 512) { precondition(FuzzDevice.isHole(place), "no hole") }
                case .extents(let cookie, _, let extents):
                    check(extents, of: cookie)
                case .error(let cookie, let error):
                    precondition(NBDError.names.contains { $0.0 == error.code }, "error \(error.code) (P-ERR-01)")
                    precondition(error.code != .notSupported || requests[cookie]?.flags.contains(.fastZero) == true, "P-ERR-06")
                    precondition(error.text.utf8.count <= 980 && !error.text.contains("\u{7}"), "text of an error (S-REQ-18)")
                    failed.insert(cookie)
                case .finished(let cookie, _):
                    precondition(answered.insert(cookie).inserted, "answered twice")
                    if shutsDown { precondition(failed.contains(cookie), "done after shutdown began") }
                }
                bytes.removeFirst(consumed)
            }
        } catch {
            preconditionFailure("a client would close: \(error)")
        }
    }

    private func check(_ extents: [StatusExtent], of cookie: UInt64) {
        guard let header = requests[cookie] else { return }
        var position = header.offset
        for extent in extents {
            precondition(FuzzDevice.isHole(position) == (extent.flags == 3), "status at \(position)")
            position += extent.byteCount
        }
        // S-CVE-23: nor at the very end.
        precondition(position <= FuzzDevice.byteCount, "extents beyond the end (P-CMD-BST-4)")
    }
}

/// Takes so many bytes and no more.
private struct Sink: OutputSink {
    let limit: Int
    private(set) var bytes = ByteBuffer()

    init(limit: Int) { self.limit = limit }

    mutating func append(_ bytes: RawSpan) -> Bool {
        self.bytes.writeBytes(bytes.extracting(first: limit - self.bytes.readableBytes))
        return self.bytes.readableBytes < limit
    }

    mutating func append(_ file: Segment.File, offset: UInt64, count: Int) -> Bool { preconditionFailure("nobody asked for segments") }
    mutating func append(zeroes count: Int) -> Bool { preconditionFailure("nobody asked for segments") }
}
