public import Block
public import NBDProtocol
public import NIOCore
internal import Synchronization

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
/// - start a task for each request in `takeWork()`, and pass its result to `complete`, on the loop; or take its `shortcut`;
/// - send `takeOutput()` in order, and call `didSend` when that has left the process; or send what `showOutput` shows, and call `dropOutput`;
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

    /// With this the type is used where it is: of others the compiler makes a copy, of 700 bytes, for each look from another module.
    private let pin = Atomic<UInt8>(0)
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
    /// `showOutput`.
    let sendsSegments: Bool
    /// What lies in files may be sent by reference (`RangeMapper.placesAreFixed`).
    public let placesAreFixed: Bool
    /// The shell may change it between calls.
    public var writePolicy = WritePolicy()
    var segments = SegmentList()
    var work: [AwaitedRequest] = []
    /// Requests whose completion is awaited.
    public internal(set) var requestsInFlight = 0
    var unsentByteCount = 0
    /// Bytes written since replies were last sent.
    var writtenByteCount = 0
    /// Enough was written: its replies should be sent.
    var hasWrittenEnough = false
    /// The last request had a long payload: the next one may, too.
    var expectsLongPayload = false
    /// Shared by the connections to the device.
    let writeTurns: WriteTurns
    /// Writes that somebody else does.
    var handedOverCount = 0
    /// How often the write that is at hand has let others go first.
    var waitCount = 0
    /// All room for what arrives was used: there is more.
    var hasMore = false
    var isShuttingDown = false
    /// No request begins until `resume`.
    public private(set) var isPaused = false
    var inputHasEnded = false
    private(set) var isAbandoned = false
    /// Why the connection is to be closed, if the client did not ask for it.
    public internal(set) var violation: ProtocolViolation?
    /// Requests decoded so far, for statistics and logs.
    public internal(set) var requestCount: UInt64 = 0

    /// - Parameters:
    ///   - device: takes requests of any alignment (see `Emulation`).
    ///   - sources: of the contexts of the export, by their ids; `base:allocation` is the device's own status.
    ///   - pool: shared by the connections of a loop.
    ///   - writeTurns: shared by the connections to the device.
    ///   - wake: called from any thread when memory that was waited for is there; the shell answers with `memoryGranted()` on the loop.
    public init(
        session: Session, device: any BlockDevice, sources: [UInt32: any ExtentSource] = [:], limits: TransmissionLimits = TransmissionLimits(),
        budget: MemoryBudget, pool: BufferPool = BufferPool(), sendsSegments: Bool = false, writeTurns: WriteTurns = WriteTurns(),
        trace: Tracer? = nil, wake: @escaping @Sendable () -> Void
    ) {
        self.session = session
        self.device = device
        self.sources = sources
        self.limits = limits
        self.pool = pool
        self.sendsSegments = sendsSegments
        self.writeTurns = writeTurns
        replies = ReplyQueue(pool: pool)
        self.trace = trace
        rules = RequestRules(session)
        mapper = device.makeMapper()
        placesAreFixed = mapper?.placesAreFixed ?? false
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
            let end = payload.writerIndex + missing
            let result = payload.write(upTo: missing + byteCountBehind(payload.readableBytes + missing), by: read)
            if payload.writerIndex > end {
                // The next header, or the beginning of it.
                inbox.clear()
                inbox.writeBytes(payload.readableBytesSpan.extracting(droppingFirst: end - payload.readerIndex))
                payload.moveWriterIndex(to: end)
            }
            stage = .collecting(intake, header, payload, missing: end - payload.writerIndex)
            payload = ByteBuffer()
            advance()
            return result
        }
        buffer.clear()
        buffer.writeImmutableBuffer(inbox)
        inbox.clear()
        let limit = expectsLongPayload ? Self.headByteCount : max(Self.receiveByteCount - buffer.readableBytes, Self.headByteCount)
        let start = buffer.writerIndex
        let result = buffer.write(upTo: limit, by: read)
        hasMore = buffer.writerIndex - start == limit
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

    /// Bytes of the next header that are received together with a payload of this length (`WritePolicy.aloneFloor`).
    func byteCountBehind(_ payloadByteCount: Int) -> Int {
        payloadByteCount >= writePolicy.aloneFloor ? RequestHeader.byteCount(rules.mode) : 0
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
        // Last: its task has a hand on it for another moment.
        if completion.payload.storageCapacity >= BufferPool.taskByteCountFloor { pool.give(completion.payload) }
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
        beginTurn()
        return replies.take()
    }

    /// Shows replies to be sent, in order, until the sink has enough.
    public func showOutput(to sink: inout some OutputSink & ~Copyable) { replies.show(to: &sink) }

    /// Bytes of replies that `showOutput` shows.
    public var outputByteCount: Int { replies.byteCount }

    /// The first bytes of what `showOutput` showed have left the process. Call `proceed()` when no more can be sent now.
    public mutating func dropOutput(_ byteCount: Int) {
        guard !isAbandoned else { return }
        let before = replies.memoryByteCount
        let hadSegments = replies.hasSegments
        replies.drop(byteCount)
        beginTurn()
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
    /// Of a payload from this length on only the beginning is received with its header, if more is there than can be received at once: the rest
    /// goes to its own buffer, and nothing is copied. Shorter ones rather come several at once.
    static let longPayloadByteCount = 128 << 10
    /// Bytes of a header and the beginning of a payload.
    static let headByteCount = 4096
    /// Bytes that are received at a time: two payloads of 64 KiB with their headers. Less than a core's cache holds.
    static let receiveByteCount = 132 << 10
    /// Bytes of replies that one turn collects before it sends.
    static let turnByteCountLimit = 256 << 10

    var isTurnFull: Bool { replies.byteCount >= Self.turnByteCountLimit || hasWrittenEnough }

    /// Replies were sent.
    private mutating func beginTurn() {
        writtenByteCount = 0
        hasWrittenEnough = false
    }

    mutating func noteWritten(_ byteCount: Int) {
        writtenByteCount += byteCount
        hasWrittenEnough = writtenByteCount >= writePolicy.turnByteCount(byteCount)
    }

    /// A write was tried so often while another loop wrote: then it waits in the kernel, as anybody else. Some milliseconds.
    static let waitLimit = 4096

    /// A long write lets another loop's go first (`WritePolicy.exclusiveFloor`): call `proceed()` soon.
    public var isHeldUp: Bool { waitCount > 0 && !isPaused }

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

    var mayDecode: Bool {
        !isPaused && requestsInFlight < limits.requestLimit && replies.byteCount + unsentByteCount < limits.outputByteCountLimit
    }

    mutating func end(_ violation: ProtocolViolation?) {
        stage = .ended
        waitCount = 0
        inbox = ByteBuffer()
        if self.violation == nil { self.violation = violation }
    }
}

extension ByteBuffer {
    fileprivate mutating func write<Result>(upTo limit: Int, by read: (inout OutputRawSpan, Int) -> Result) -> Result {
        var result: Result?
        writeWithOutputRawSpan(minimumWritableBytes: limit) { output in result = read(&output, limit) }
        guard let result else { preconditionFailure("the buffer did not let us write") }
        return result
    }
}
