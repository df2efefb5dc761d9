public import Block
public import NBDProtocol
public import NIOCore

/// What one client may have in flight.
public struct TransmissionLimits: Equatable, Sendable {
    /// Requests being carried out at a time, at least 1 (S-LIM-07).
    public var requestLimit = 16
    /// Bytes of payloads, of reads and of replies not sent yet. One request is always admitted.
    public var byteCountLimit = 64 << 20
    /// Bytes of replies that wait to be sent; beyond it no request is decoded, so a client that does not read is not read either.
    public var outputByteCountLimit = 4 << 20

    public init() {}
}

/// One client's transmission phase, without a socket: bytes and completions in, replies and work out.
///
/// Belongs to one event loop. The shell obeys four rules:
///
/// - pass what arrives to `receive`, and `endOfInput` when the client has closed its side; read only while `wantsBytes`;
/// - start a task for each request in `takeWork()`, and pass its result to `complete`, on the loop;
/// - send `takeOutput()` in order, and call `didSend` when that has left the process; or send what `forEachOutput` shows, and call `dropOutput`;
/// - when `isFinished` and everything is sent, close; when the connection is lost, call `abandon()`.
///
/// Requests that arrived together are decoded before anything is sent, up to 256 KiB of replies or 32 KiB written at a time (`shouldSend`);
/// those whose bytes are at hand are answered at once (`mapper`), the others in the order of completion. Spec: PROTOCOL 9–11; REFERENCE 3, 4, 6 and 10.
public struct Transmission: ~Copyable {
    enum Stage {
        case header
        /// A request waits for memory.
        case admission(RequestRules.Intake, RequestHeader)
        case collecting(RequestRules.Intake, RequestHeader, ByteBuffer, missing: Int)
        case discarding(RequestRules.Refusal, RequestHeader, remaining: Int)
        case ended
    }

    public let session: Session
    let rules: RequestRules
    let device: any BlockDevice
    /// What contexts other than `base:allocation` tell, by their ids.
    let sources: [UInt32: any ExtentSource]
    let mapper: (any RangeMapper)?
    let limits: TransmissionLimits
    let trace: Tracer?
    var lease: MemoryLease
    var stage = Stage.header
    var inbox = ByteBuffer()
    private(set) var pool: BufferPool
    var replies: ReplyQueue
    /// The shell sends bytes from where they lie: a READ of what is at hand (`Segment.isAtHand`) is answered without a copy. Such a shell uses
    /// `forEachOutput`.
    let sendsSegments: Bool
    var segments = SegmentList()
    private var work: [AwaitedRequest] = []
    /// Requests whose completion is awaited.
    public private(set) var requestsInFlight = 0
    private var unsentByteCount = 0
    /// Bytes written since replies were last sent.
    var writtenByteCount = 0
    private var isShuttingDown = false
    /// No request begins until `resume`.
    public private(set) var isPaused = false
    private var inputHasEnded = false
    private var isAbandoned = false
    /// Why the connection is to be closed, if the client did not ask for it.
    public private(set) var violation: ProtocolViolation?
    /// Requests decoded so far, for statistics and logs.
    public private(set) var requestCount: UInt64 = 0

    /// - Parameters:
    ///   - device: takes requests of any alignment (see `Emulation`).
    ///   - sources: of the contexts of the export, by their ids; `base:allocation` is the device's own status.
    ///   - pool: shared by the connections of a loop.
    ///   - wake: called from any thread when memory that was waited for is there; the shell answers with `memoryGranted()` on the loop.
    public init(
        session: Session, device: any BlockDevice, sources: [UInt32: any ExtentSource] = [:], limits: TransmissionLimits = TransmissionLimits(),
        budget: MemoryBudget,
        pool: BufferPool = BufferPool(), sendsSegments: Bool = false, trace: Tracer? = nil, wake: @escaping @Sendable () -> Void
    ) {
        self.session = session
        self.device = device
        self.sources = sources
        self.limits = limits
        self.pool = pool
        self.sendsSegments = sendsSegments
        replies = ReplyQueue(pool: pool)
        self.trace = trace
        rules = RequestRules(session)
        mapper = device.makeMapper()
        lease = MemoryLease(budget: budget, byteCountLimit: limits.byteCountLimit, wake: wake)
        trace?(.attached(export: session.export.name))
    }

    // MARK: In

    /// Takes bytes from the client and does what can be done with them.
    public mutating func receive(_ bytes: ByteBuffer) {
        var bytes = bytes
        if inbox.readableBytes == 0 {
            inbox = bytes
        } else {
            // Without this a client that always leaves a piece of a message behind would make the inbox grow for ever.
            inbox.discardReadBytes()
            inbox.writeBuffer(&bytes)
        }
        advance()
    }

    /// Lets `read` append bytes from the client, at most as many as it is told, to where they belong: to a payload that is being collected, or
    /// to `buffer`, which a shell shares between its connections. Then does what can be done with them. The buffer is free again afterwards.
    public mutating func receive<Result>(sharing buffer: inout ByteBuffer, by read: (inout OutputRawSpan, _ limit: Int) -> Result) -> Result {
        if case .collecting(let intake, let header, var payload, let missing) = stage, inbox.readableBytes == 0,
            missing >= Self.directByteCountFloor
        {
            stage = .ended  // so that the buffer has one owner while it grows
            let start = payload.writerIndex
            let result = payload.write(upTo: missing, by: read)
            stage = .collecting(intake, header, payload, missing: missing - (payload.writerIndex - start))
            payload = ByteBuffer()
            advance()
            return result
        }
        buffer.clear()
        buffer.writeImmutableBuffer(inbox)
        inbox.clear()
        let result = buffer.write(upTo: max(buffer.writableBytes, 4096), by: read)
        swap(&inbox, &buffer)
        advance()
        if inbox.readableBytes > 0 {
            // Most often part of a header.
            buffer.clear(minimumCapacity: inbox.readableBytes)
            buffer.writeImmutableBuffer(inbox)
        }
        swap(&inbox, &buffer)
        return result
    }

    var hasWork: Bool { !work.isEmpty }

    mutating func setPaused(_ isPaused: Bool) { self.isPaused = isPaused }

    /// From now on the transmission lives on another loop, which has a pool of its own.
    public mutating func move(to pool: BufferPool) {
        self.pool = pool
        replies.pool = pool
    }

    /// Bytes of memory behind what has arrived and is not decoded yet.
    var inboxCapacity: Int { inbox.capacity }

    /// The client will send nothing more: what it sent is finished and answered, then it is over. In the middle of a message this is a
    /// violation.
    public mutating func endOfInput() {
        inputHasEnded = true
        advance()
    }

    /// From now on requests are answered ESHUTDOWN; what is in flight goes on (P-TERM-04).
    public mutating func beginShutdown() { isShuttingDown = true }

    /// The result of work that was taken.
    public mutating func complete(_ completion: AwaitedRequest.Completion) {
        requestsInFlight -= 1
        guard !isAbandoned else { return }
        lease.release(completion.cost)
        for reply in completion.replies { enqueue(reply) }
        advance()
    }

    /// Replies of this many bytes have left the process.
    public mutating func didSend(_ byteCount: Int) {
        guard !isAbandoned else { return }
        unsentByteCount -= byteCount
        if unsentByteCount == 0 { replies.allSent() }
        lease.release(byteCount)
        advance()
    }

    /// The answer to `wake`.
    public mutating func memoryGranted() {
        guard !isAbandoned else { return }
        lease.collect()
        advance()
    }

    /// The connection is lost: nothing can be answered any more. Work that was taken goes on and is forgotten.
    public mutating func abandon() {
        guard !isAbandoned else { return }
        isAbandoned = true
        stage = .ended
        inbox = ByteBuffer()
        replies = ReplyQueue(pool: pool)
        mapper?.released()
        work = []
        lease.end()
        trace?(.detached(export: session.export.name))
    }

    // MARK: Out

    /// Requests to be started now.
    public mutating func takeWork() -> [AwaitedRequest] {
        guard !work.isEmpty else { return [] }
        defer { work = [] }
        return work
    }

    /// Replies to be sent, in order.
    public mutating func takeOutput() -> [ByteBuffer] {
        unsentByteCount += replies.byteCount
        writtenByteCount = 0
        return replies.take()
    }

    /// Shows replies to be sent, in order, until `body` returns false: the given part of each piece.
    public func forEachOutput(_ body: (OutputPiece, Range<Int>) -> Bool) { replies.forEachPiece(body) }

    /// Bytes of replies that `forEachOutput` shows.
    public var outputByteCount: Int { replies.byteCount }

    /// The first bytes of what `forEachOutput` showed have left the process. Call `proceed()` when no more can be sent now.
    public mutating func dropOutput(_ byteCount: Int) {
        guard !isAbandoned else { return }
        let before = replies.memoryByteCount
        let hadSegments = replies.hasSegments
        replies.drop(byteCount)
        writtenByteCount = 0
        if hadSegments, !replies.hasSegments { mapper?.released() }
        lease.release(before - replies.memoryByteCount)
    }

    /// So much is done that its replies should be sent before more requests are done: send them and call `proceed()`. The client can work on
    /// them meanwhile.
    public var shouldSend: Bool {
        guard case .header = stage, isTurnFull else { return false }
        return inbox.readableBytes >= RequestHeader.byteCount(rules.mode)
    }

    /// Goes on where `shouldSend` stopped.
    public mutating func proceed() { advance() }

    /// Fewer bytes of a payload are worth copying if those behind them come with the same call.
    static let directByteCountFloor = 16 << 10
    /// Bytes of replies that one turn collects before it sends.
    static let turnByteCountLimit = 256 << 10
    /// Bytes that one turn writes before it sends: a write takes long, its reply is short.
    static let turnWriteByteCountLimit = 32 << 10

    private var isTurnFull: Bool {
        replies.byteCount >= Self.turnByteCountLimit || replies.byteCount > 0 && writtenByteCount >= Self.turnWriteByteCountLimit
    }

    /// Whether the shell should read from the client.
    public var wantsBytes: Bool {
        switch stage {
        case .ended, .admission: false
        case .collecting(_, _, _, let missing): missing > 0
        case .discarding: true
        case .header: mayDecode && !isTurnFull && !inputHasEnded
        }
    }

    /// No more requests will be decoded and all of them are answered; close once everything is sent.
    public var isFinished: Bool {
        if case .ended = stage { requestsInFlight == 0 && work.isEmpty } else { false }
    }

    /// Holds memory that others may be waiting for.
    public var holdsMemory: Bool { lease.holdsMemory }

    /// Bytes of requests and replies that are held for this client.
    public var memoryByteCount: Int { lease.used }

    /// In the middle of a message from the client.
    public var isMidMessage: Bool {
        switch stage {
        case .collecting, .discarding: true
        case .header: inbox.readableBytes > 0
        case .admission, .ended: false
        }
    }

    private var mayDecode: Bool {
        !isPaused && requestsInFlight < limits.requestLimit && replies.byteCount + unsentByteCount < limits.outputByteCountLimit
    }

    private mutating func end(_ violation: ProtocolViolation?) {
        stage = .ended
        inbox = ByteBuffer()
        if self.violation == nil { self.violation = violation }
    }

    // MARK: The machine

    /// Decodes and starts requests until bytes, slots or memory run out.
    private mutating func advance() {
        while step() {}
        guard inputHasEnded else { return }
        switch stage {
        case .header where mayDecode && !shouldSend: end(inbox.readableBytes == 0 ? nil : .truncated)
        case .collecting(_, _, _, let missing) where missing > 0: end(.truncated)
        case .discarding: end(.truncated)
        case .header, .admission, .collecting, .ended: break
        }
    }

    /// One step; false when nothing more can be done now.
    private mutating func step() -> Bool {
        switch stage {
        case .header:
            return decodeHeader()
        case .admission(let intake, let header):
            return !isPaused && admit(intake, header)
        case .collecting(let intake, let header, var payload, let missing):
            guard missing == 0 ? !isPaused : inbox.readableBytes > 0 else { return false }
            stage = .ended  // so that the buffer has one owner while it grows
            let taken = min(missing, inbox.readableBytes)
            if var part = inbox.readSlice(length: taken) { payload.writeBuffer(&part) }
            guard taken == missing, !isPaused else {
                stage = .collecting(intake, header, payload, missing: missing - taken)
                return false
            }
            stage = .header
            start(intake, header, payload)
            pool.give(payload)
            return true
        case .discarding(let refusal, let header, let remaining):
            let taken = min(remaining, inbox.readableBytes)
            inbox.moveReaderIndex(forwardBy: taken)
            guard taken == remaining else {
                stage = .discarding(refusal, header, remaining: remaining - taken)
                return false
            }
            stage = .header
            refuse(refusal, header)
            return true
        case .ended:
            return false
        }
    }

    private mutating func decodeHeader() -> Bool {
        let byteCount = RequestHeader.byteCount(rules.mode)
        guard mayDecode, !isTurnFull, inbox.readableBytes >= 4 else { return false }
        let header: RequestHeader
        do throws(WireError) {
            var reader = WireReader(inbox.readableBytesSpan)
            header = try RequestHeader(from: &reader, mode: rules.mode)
        } catch {
            if case .badMagic(let magic) = error { end(.badRequestMagic(magic)) }
            return false
        }
        inbox.moveReaderIndex(forwardBy: byteCount)
        requestCount &+= 1
        trace?(.receiveRequest(header))
        var intake = rules.intake(header)
        if isShuttingDown { intake = intake.shuttingDown }
        switch intake {
        case .run, .collect, .collectFilter:
            return admit(intake, header)
        case .refuse(let refusal, let discarding):
            stage = .discarding(refusal, header, remaining: discarding)
            return true
        case .refuseAndClose(let refusal, let violation):
            refuse(refusal, header)
            end(violation)
            return false
        case .close(let violation):
            end(violation)
            return false
        case .disconnect:
            end(nil)
            return false
        }
    }

    /// Takes memory for a request; without it the request waits, and nothing is read behind it.
    private mutating func admit(_ intake: RequestRules.Intake, _ header: RequestHeader) -> Bool {
        let answer =
            switch intake {
            case .run(let request): lease.take(Self.cost(request))
            case .collect(_, let byteCount), .collectFilter(_, let byteCount): lease.take(byteCount)
            default: MemoryLease.Answer.granted
            }
        guard answer == .granted else {
            stage = .admission(intake, header)
            return false
        }
        stage = .header
        switch intake {
        case .collect(_, let byteCount), .collectFilter(_, let byteCount):
            if let whole = inbox.readSlice(length: byteCount) {
                start(intake, header, whole)
            } else {
                stage = .collecting(intake, header, pool.take(byteCount), missing: byteCount)
            }
        default:
            start(intake, header, ByteBuffer())
        }
        return true
    }

    /// Bytes that carrying out a request without payload may take.
    static func cost(_ request: RequestRules.Request) -> Int {
        switch request.command {
        case .read: Int(request.count)
        // 16 bytes for each extent; few files have more than one in 4 KiB.
        case .blockStatus: Int(min(request.count / 256, 4 << 20)) * min(max(request.contexts.count, 1), 8)
        default: 0
        }
    }

    /// All bytes of the request are here and its memory is taken.
    private mutating func start(_ intake: RequestRules.Intake, _ header: RequestHeader, _ payload: ByteBuffer) {
        switch intake {
        case .run(let request):
            run(request, payload, cost: Self.cost(request))
        case .collect(let request, let byteCount):
            trace?(.receivePayload(cookie: header.cookie, byteCount: byteCount))
            if rules.mode == .extended, !header.flags.contains(.payloadLength) {
                trace?(.extendedPayloadCompliance(offset: header.offset, length: header.length))
            }
            run(request, payload, cost: byteCount)
        case .collectFilter(_, let byteCount):
            lease.release(byteCount)
            switch rules.filtered(header, payload.readableBytesSpan) {
            case .success(let request):
                trace?(.blockStatusPayloadCompliance(offset: request.offset, length: request.count))
                let cost = Self.cost(request)
                lease.charge(cost)
                run(request, payload, cost: cost)
            case .failure(let refusal):
                refuse(refusal, header)
            }
        default:
            break
        }
    }

    private mutating func run(_ request: RequestRules.Request, _ payload: ByteBuffer, cost: Int) {
        if trace != nil, rules.isMisaligned(request) {
            trace?(.alignCompliance(request.command, offset: request.offset, length: request.count, alignment: rules.minimumBlock))
        }
        if let mapper, runNow(request, payload, cost: cost, mapper) { return }
        requestsInFlight += 1
        work.append(
            AwaitedRequest(
                request: request, payload: payload.withoutMuchAround, cost: cost, device: device,
                sources: request.command == .blockStatus ? sources : [:], mode: rules.mode,
                chunkByteCountLimit: UInt64(session.export.blockSizes.maximumPayload), trace: trace))
    }

    private mutating func refuse(_ refusal: RequestRules.Refusal, _ header: RequestHeader) {
        let encoder = ReplyEncoder(mode: rules.mode, cookie: header.cookie, offset: header.offset, trace: trace)
        enqueue(encoder.reply { encoder.failure(refusal.error, refusal.text, into: &$0) })
    }

    /// Accounts for the memory of replies that were added, or taken back, since it was `before`.
    mutating func account(since before: Int) {
        lease.charge(replies.memoryByteCount - before)
    }

    mutating func enqueue(_ reply: ByteBuffer) {
        let before = replies.memoryByteCount
        replies.append(reply)
        account(since: before)
    }
}

extension ByteBuffer {
    /// A part of a buffer keeps all of it: rather a copy than that for long.
    fileprivate var withoutMuchAround: ByteBuffer {
        guard storageCapacity > 2 * max(readableBytes, 2048) else { return self }
        var copy = ByteBuffer()
        copy.writeImmutableBuffer(self)
        return copy
    }

    fileprivate mutating func write<Result>(upTo limit: Int, by read: (inout OutputRawSpan, Int) -> Result) -> Result {
        var result: Result?
        writeWithOutputRawSpan(minimumWritableBytes: limit) { output in result = read(&output, limit) }
        guard let result else { preconditionFailure("the buffer did not let us write") }
        return result
    }
}

extension RequestRules.Intake {
    /// The same bytes, but the answer is ESHUTDOWN.
    fileprivate var shuttingDown: RequestRules.Intake {
        let refusal = RequestRules.Refusal(.shutdown, "the server is shutting down")
        return switch self {
        case .run: .refuse(refusal, discarding: 0)
        case .collect(_, let byteCount), .collectFilter(_, let byteCount): .refuse(refusal, discarding: byteCount)
        case .refuse(_, let discarding): .refuse(refusal, discarding: discarding)
        case .refuseAndClose, .close, .disconnect: self
        }
    }
}
