import NBDProtocol
import NBDTLS
import NIOCore
import NIOTLS

/// The client's side of one connection, on its event loop: feeds the conversations of NBDProtocol and matches what they tell with who waits.
final class ClientConnection: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    /// Someone waits for the reply to a request.
    private struct Waiter {
        var header: RequestHeader
        var reply: NBDReply
        var promise: EventLoopPromise<NBDReply>
        var deadline: Scheduled<Void>?
    }

    let eventLoop: any EventLoop
    private let options: NBDClient.Options
    private var context: ChannelHandlerContext?
    private var inbox = ByteBuffer()
    private let tls: TLSClientSession?

    private var handshake: ClientHandshake
    private var decoder = ReplyDecoder(mode: .simple)
    private(set) var session: ClientSession?
    /// nil: in use.
    private(set) var failure: NBDClientError?

    private let greetingPromise: EventLoopPromise<Void>
    private var isGreeted = false
    private var option: (promise: EventLoopPromise<ClientHandshake.Action>, deadline: Scheduled<Void>)?
    private var waiters: [UInt64: Waiter] = [:]
    private var nextCookie: UInt64 = 1
    private var isDisconnecting = false

    /// - Parameter tls: set when `options` say that nothing may be said in clear.
    init(_ options: NBDClient.Options, _ eventLoop: any EventLoop, tls: TLSClientSession?) {
        self.options = options
        self.tls = tls
        self.eventLoop = eventLoop
        handshake = ClientHandshake(options.handshake)
        greetingPromise = eventLoop.makePromise()
    }

    var style: HandshakeStyle { handshake.style ?? .oldstyle }
    var mode: ReplyMode { session?.mode ?? handshake.mode }

    // MARK: What the channel tells

    func handlerAdded(context: ChannelHandlerContext) { self.context = context }

    func handlerRemoved(context: ChannelHandlerContext) {
        fail(.closed(""))
        self.context = nil
    }

    func channelActive(context: ChannelHandlerContext) {
        let deadline = self.deadline(options.timeLimit, "the server does not greet")
        greetingPromise.futureResult.assumeIsolated().whenComplete { _ in deadline.cancel() }
        context.fireChannelActive()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        var bytes = unwrapInboundIn(data)
        if inbox.readableBytes == 0 {
            inbox = bytes
        } else {
            inbox.discardReadBytes()
            inbox.writeBuffer(&bytes)
        }
        attempt { try process() }
    }

    private func attempt(_ body: () throws -> Void) {
        do {
            try body()
        } catch let error as HandshakeError {
            fail(.handshake(error))
        } catch let error as TLSRefusal {
            fail(.tls(error.description))
        } catch let error as ReplyViolation {
            fail(.violation(error))
        } catch let error as NBDClientError {
            fail(error)
        } catch {
            fail(.system("\(error)"))
        }
    }

    func channelInactive(context: ChannelHandlerContext) {
        if session == nil {
            fail(.handshake(handshake.endOfInput()))
        } else {
            fail(.closed(decoder.isBetweenChunks && inbox.readableBytes == 0 ? "" : "in the middle of a reply"))
        }
        context.fireChannelInactive()
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        guard case TLSUserEvent.handshakeCompleted = event else { return context.fireUserInboundEventTriggered(event) }
        attempt {
            try tls?.peer()
            var output: [UInt8] = []
            let action = handshake.tlsStarted(output: &output)
            if !output.isEmpty { write(ByteBuffer(bytes: output)) }
            if case .ready = action { obey(action) }
        }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        guard !TLSFailure.isUncleanEnd(error) else { return }  // the end follows
        fail(TLSFailure.explain(error).map { .tls($0) } ?? .system("\(error)"))
    }

    /// What arrives from here on, TLS must make sense of. In clear there is nothing more to say, for either side.
    private func startTLS() throws {
        guard inbox.readableBytes == 0 else { throw HandshakeError.dataInClear }
        guard let tls, let pipeline = context?.pipeline.syncOperations else { return }
        try pipeline.addHandler(tls.handler, position: .before(self))
    }

    /// The end: everyone who waits learns of it. Only the first reason counts.
    private func fail(_ error: NBDClientError) {
        guard failure == nil else { return }
        failure = error
        greet(.failure(error))
        if let option {
            self.option = nil
            option.deadline.cancel()
            option.promise.fail(error)
        }
        let lost = waiters.values
        waiters = [:]
        for waiter in lost {
            waiter.deadline?.cancel()
            waiter.promise.fail(error)
        }
        inbox = ByteBuffer()
        context?.close(promise: nil)
    }

    private func greet(_ result: Result<Void, NBDClientError>) {
        guard !isGreeted else { return }
        isGreeted = true
        switch result {
        case .success: greetingPromise.succeed()
        case .failure(let error): greetingPromise.fail(error)
        }
    }

    private func deadline(_ limit: Duration, _ what: String) -> Scheduled<Void> {
        eventLoop.assumeIsolated().scheduleTask(in: TimeAmount(limit)) { self.fail(.timedOut(what)) }
    }

    // MARK: What arrives

    private func process() throws {
        while failure == nil {
            let bytes = inbox  // the same storage: a span cannot come out of a property of a class
            if session == nil {
                var output: [UInt8] = []
                let (consumed, action) = try handshake.receive(bytes.readableBytesSpan, output: &output)
                inbox.moveReaderIndex(forwardBy: consumed)
                if !output.isEmpty { write(ByteBuffer(bytes: output)) }
                if case .read = action { return }
                if case .startTLS = action { return try startTLS() }
                obey(action)
            } else {
                let (consumed, event) = try decoder.receive(bytes.readableBytesSpan)
                if case .read = event {
                    inbox.moveReaderIndex(forwardBy: consumed)
                    return
                }
                try take(event)
                inbox.moveReaderIndex(forwardBy: consumed)
            }
        }
    }

    private func obey(_ action: ClientHandshake.Action) {
        if case .transmit(let session) = action {
            self.session = session
            decoder = ReplyDecoder(mode: session.mode, contexts: session.contexts)
        }
        greet(.success(()))
        guard let option else { return }
        self.option = nil
        option.deadline.cancel()
        option.promise.succeed(action)
        if case .close = action { context?.close(promise: nil) }
    }

    private func take(_ event: ReplyEvent) throws(NBDClientError) {
        switch event {
        case .read: break
        case .data(let cookie, let offset, let range, let isStart):
            let from = inbox.readerIndex + range.lowerBound
            guard let piece = inbox.getSlice(at: from, length: range.count) else { return }
            try place(cookie, offset, UInt64(range.count)) { data, start in
                if start == data.count {
                    data.append(contentsOf: piece.readableBytesView)
                } else {
                    data.replaceSubrange(start..<(start + range.count), with: piece.readableBytesView)
                }
            }
            if !isStart, case .data(let start, let count)? = waiters[cookie]?.reply.chunks.popLast() {
                waiters[cookie]?.reply.chunks.append(.data(offset: start, byteCount: count + UInt64(range.count)))
            } else {
                waiters[cookie]?.reply.chunks.append(.data(offset: offset, byteCount: UInt64(range.count)))
            }
        case .hole(let cookie, let offset, let byteCount):
            try place(cookie, offset, byteCount) { data, start in
                // Where the hole lies inside, there are zeroes already.
                let end = start + Int(byteCount)
                if end > data.count { data.append(contentsOf: repeatElement(0, count: end - data.count)) }
            }
            waiters[cookie]?.reply.chunks.append(.hole(offset: offset, byteCount: byteCount))
        case .extents(let cookie, let context, let extents):
            waiters[cookie]?.reply.chunks.append(.extents(context: context, extents))
        case .error(let cookie, let error):
            waiters[cookie]?.reply.errors.append(error)
            waiters[cookie]?.reply.chunks.append(.error(error))
        case .finished(let cookie, let isSimple):
            guard var waiter = waiters.removeValue(forKey: cookie) else { return }
            waiter.deadline?.cancel()
            waiter.reply.isSimple = isSimple
            waiter.promise.succeed(waiter.reply)
        }
    }

    /// Lets `body` write into the data of a READ, which are made long enough to begin at `start`. The decoder has checked the range.
    private func place(_ cookie: UInt64, _ offset: UInt64, _ count: UInt64, _ body: (inout [UInt8], Int) -> Void) throws(NBDClientError) {
        guard let index = waiters.index(forKey: cookie) else { return }
        let header = waiters.values[index].header
        guard header.length <= options.readByteCountLimit else { throw .replyTooLarge(header.length) }
        let start = Int(offset - header.offset)
        let missing = start - waiters.values[index].reply.data.count
        if waiters.values[index].reply.data.isEmpty { waiters.values[index].reply.data.reserveCapacity(Int(header.length)) }
        // Out of order: up to the end of this piece, so that `body` finds its place.
        if missing > 0 { waiters.values[index].reply.data.append(contentsOf: repeatElement(0, count: missing)) }
        let overhang = start + Int(count) - waiters.values[index].reply.data.count
        if overhang > 0, overhang < Int(count) { waiters.values[index].reply.data.append(contentsOf: repeatElement(0, count: overhang)) }
        body(&waiters.values[index].reply.data, start)
    }

    // MARK: What is asked

    var greeting: EventLoopFuture<Void> { greetingPromise.futureResult }

    func ask(_ request: ClientHandshake.Request) -> EventLoopFuture<ClientHandshake.Action> {
        if let failure { return eventLoop.makeFailedFuture(failure) }
        guard session == nil else { return eventLoop.makeFailedFuture(NBDClientError.wrongPhase) }
        var output: [UInt8] = []
        do {
            try handshake.begin(request, output: &output)
        } catch {
            return eventLoop.makeFailedFuture(NBDClientError.handshake(error))
        }
        let promise = eventLoop.makePromise(of: ClientHandshake.Action.self)
        option = (promise, deadline(options.timeLimit, "the server does not answer an option"))
        write(ByteBuffer(bytes: output))
        return promise.futureResult
    }

    /// Sends a request as it is, right or wrong, and waits for its reply.
    ///
    /// - Parameter marksPayload: sets PAYLOAD_LEN where a WRITE needs it (P-EXT-07): only here it is known without a detour.
    func submit(_ request: NBDRequest, marksPayload: Bool = false) -> EventLoopFuture<NBDReply> {
        if let failure { return eventLoop.makeFailedFuture(failure) }
        guard let session else { return eventLoop.makeFailedFuture(NBDClientError.wrongPhase) }
        let cookie = request.cookie ?? takeCookie()
        let isExtended = session.mode == .extended
        let header = RequestHeader(
            flags: isExtended && marksPayload ? request.flags.union(.payloadLength) : request.flags, command: request.command,
            cookie: cookie,
            offset: request.offset, length: isExtended ? request.length : UInt64(UInt32(truncatingIfNeeded: request.length)))
        guard decoder.expect(header, effectByteCount: request.effectByteCount, contextIDs: request.contextIDs) else {
            return eventLoop.makeFailedFuture(NBDClientError.cookieInUse(cookie))
        }
        let promise = eventLoop.makePromise(of: NBDReply.self)
        let limit = options.requestTimeLimit.map { deadline($0, "no reply to \(request.command)") }
        waiters[cookie] = Waiter(header: header, reply: NBDReply(cookie: cookie), promise: promise, deadline: limit)
        write(encoded(header, session.mode), flush: request.payload.isEmpty)
        if !request.payload.isEmpty { write(ByteBuffer(bytes: request.payload)) }
        return promise.futureResult
    }

    func send(_ bytes: ByteBuffer) -> EventLoopFuture<Void> {
        if let failure { return eventLoop.makeFailedFuture(failure) }
        guard let context else { return eventLoop.makeFailedFuture(NBDClientError.closed("")) }
        let promise = eventLoop.makePromise(of: Void.self)
        context.writeAndFlush(wrapOutboundOut(bytes), promise: promise)
        return promise.futureResult
    }

    func disconnect() -> EventLoopFuture<Void> {
        guard let context, failure == nil else { return eventLoop.makeSucceededVoidFuture() }
        if let session {
            if !isDisconnecting { write(encoded(RequestHeader(command: .disconnect, cookie: takeCookie()), session.mode)) }
            isDisconnecting = true
        } else if style == .fixedNewstyle, handshake.isReady {
            // The acknowledgement ends in `.close`, the server's end of it in a closed channel.
            _ = ask(.abort)
        } else {
            context.close(promise: nil)
        }
        let deadline = self.deadline(options.timeLimit, "the server does not close")
        return context.channel.closeFuture.assumeIsolated().flatMapThrowing { [self] in
            deadline.cancel()
            if case .timedOut? = failure { throw failure ?? .closed("") }
            if case .violation? = failure { throw failure ?? .closed("") }
        }.nonisolated()
    }

    private func takeCookie() -> UInt64 {
        while waiters[nextCookie] != nil { nextCookie &+= 1 }
        defer { nextCookie &+= 1 }
        return nextCookie
    }

    private func encoded(_ header: RequestHeader, _ mode: ReplyMode) -> ByteBuffer {
        var buffer = ByteBuffer()
        buffer.writeWithOutputRawSpan(minimumWritableBytes: 32) { header.encode(into: &$0, mode: mode) }
        return buffer
    }

    private func write(_ buffer: ByteBuffer, flush: Bool = true) {
        context?.write(wrapOutboundOut(buffer), promise: nil)
        if flush { context?.flush() }
    }
}
