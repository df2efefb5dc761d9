import NBDEngine
import NBDProtocol
import NIOCore

/// What all connections of a server share.
struct ConnectionEnvironment: Sendable {
    let registry: ExportRegistry
    let configuration: NBDServer.Configuration
    let budget: MemoryBudget
    let journal: Journal
    /// A client has chosen an export (true) or, having chosen one, is gone (false).
    let attachmentChanged: @Sendable (Bool) -> Void
}

/// The NIO face of one connection: moves bytes between its socket and the sans-IO machines, and knows the clock.
///
///     greeting → ServerHandshake → Transmission → closing
///
/// Reads only when the machine wants bytes (`autoRead` is off): that is the whole of back-pressure.
final class ConnectionHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    /// How long a client may still be told ESHUTDOWN before its idle connection is closed (P-TERM-05).
    static let farewell = TimeAmount.milliseconds(250)
    /// Answers of the handshake that may wait to be sent; more than one LIST of a big server fits.
    static let handshakeOutputLimit = 256 << 10

    let identity: ConnectionIdentity
    let environment: ConnectionEnvironment
    let listener: Listener
    /// The connection's socket, while the channel is open; nil: not known.
    let descriptor: CInt?
    let executor: LoopExecutor
    private var context: ChannelHandlerContext?
    private var handshake: ServerHandshake?
    private var transmission: Transmission?
    /// What the handshake has not used yet.
    private var inbox = ByteBuffer()
    private var chosenExport: ServedExport?
    private var handshakeDeadline: Scheduled<Void>?
    private var stallCheck: Scheduled<Void>?
    private var lastProgress = NIODeadline.now()
    private var unsentByteCount = 0
    private var isReadPending = false
    private var isFlushScheduled = false
    private var isClosing = false
    private var isDraining = false

    init(identity: ConnectionIdentity, environment: ConnectionEnvironment, listener: Listener, descriptor: CInt?, loop: any EventLoop) {
        self.identity = identity
        self.environment = environment
        self.listener = listener
        self.descriptor = descriptor
        executor = LoopExecutor(loop)
    }

    private var tracer: Tracer? {
        guard let tracer = environment.configuration.tracer else { return nil }
        return { [identity] event in tracer(event, identity) }
    }

    // MARK: The channel's life

    func channelActive(context: ChannelHandlerContext) {
        self.context = context
        environment.journal.connected(identity)
        if let name = listener.oldstyleExport { return beginOldstyle(name, context) }
        let handshake = ServerHandshake(
            limits: environment.configuration.handshakeLimits, isListable: listener.isListable, trace: tracer)
        var greeting: [UInt8] = []
        handshake.start(output: &greeting)
        self.handshake = consume handshake
        send(greeting)
        let limit = environment.configuration.handshakeLimit
        if limit > .zero {
            let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
            handshakeDeadline = context.eventLoop.scheduleTask(in: TimeAmount(limit)) {
                bound.value.tracer?(.handshakeTimeout)
                bound.value.close(.handshakeTimeout)
            }
        }
        readIfWanted()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        var bytes = unwrapInboundIn(data)
        lastProgress = .now()
        if let transmission {
            transmission.receive(bytes)
            pump()
        } else if !isClosing {
            inbox.writeBuffer(&bytes)
            advanceHandshake()
        }
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        isReadPending = false
        flush()
        settle()
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        guard case ChannelEvent.inputClosed = event else { return context.fireUserInboundEventTriggered(event) }
        guard let transmission else { return close(nil) }
        transmission.endOfInput()
        isReadPending = true  // nothing will come any more
        pump()
        flush()
        settle()
    }

    func channelInactive(context: ChannelHandlerContext) {
        isClosing = true
        handshakeDeadline?.cancel()
        stallCheck?.cancel()
        handshake = nil
        if let transmission {
            transmission.abandon()
            self.transmission = nil
            environment.attachmentChanged(false)
        }
        environment.journal.disconnected(identity)
        self.context = nil
        context.fireChannelInactive()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        environment.journal.failed(identity, error)
        context.close(promise: nil)
    }

    // MARK: Handshake

    private func advanceHandshake() {
        var output: [UInt8] = []
        var ending: ServerHandshake.Action?
        while ending == nil, unsentByteCount + output.count < Self.handshakeOutputLimit {
            guard let (consumed, first) = handshake?.receive(inbox.readableBytesSpan, output: &output) else { return }
            inbox.moveReaderIndex(forwardBy: consumed)
            var action = first
            answering: while true {
                switch action {
                case .lookUp(let name):
                    chosenExport = environment.registry.find(name)
                    action = handshake?.answer(chosenExport?.description, output: &output) ?? .close(nil)
                case .list:
                    action = handshake?.answer(list: environment.registry.all.map(\.description), output: &output) ?? .close(nil)
                case .transmit, .close:
                    ending = action
                    break answering
                case .read:
                    break answering
                }
            }
            if consumed == 0, action == .read { break }
        }
        // A write may complete at once and come back to us: the handshake must be over by then.
        if ending != nil { handshake = nil }
        send(output)
        switch ending {
        case .transmit(let session):
            guard let export = chosenExport, export.description.id == session.export.id else { return close(nil) }
            beginTransmission(session, export)
        case .close(let violation):
            close(violation)
        default:
            inbox.discardReadBytes()
        }
    }

    private func beginOldstyle(_ name: String, _ context: ChannelHandlerContext) {
        guard let export = environment.registry.find(name) else { return close(.exportNameRefused(name)) }
        tracer?(.negotiateOldStyle(size: export.description.byteCount, flags: export.description.flags))
        send(oldstyleGreeting(for: export.description))
        chosenExport = export
        beginTransmission(
            Session(export: export.description, flags: export.description.flags, mode: .simple, contexts: []), export)
        readIfWanted()
    }

    private func beginTransmission(_ session: Session, _ export: ServedExport) {
        guard let context else { return }
        handshakeDeadline?.cancel()
        handshake = nil
        var limits = TransmissionLimits()
        limits.requestLimit = max(1, environment.configuration.requestLimit)
        limits.byteCountLimit = environment.configuration.connectionMemoryLimit
        let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
        let loop = context.eventLoop
        let transmission = Transmission(
            session: session, device: export.device, limits: limits, budget: environment.budget, trace: tracer,
            wake: { loop.execute { bound.value.memoryGranted() } })
        self.transmission = transmission
        environment.journal.attached(identity, session)
        environment.attachmentChanged(true)
        if isDraining { transmission.beginShutdown() }
        if inbox.readableBytes > 0 {
            transmission.receive(inbox)
            pump()
        }
        inbox = ByteBuffer()
    }

    // MARK: Transmission

    private func startWork() {
        guard let transmission, let context else { return }
        let work = transmission.takeWork()
        guard !work.isEmpty else { return }
        let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
        for request in work {
            Task(executorPreference: executor) {
                let completion = await request.run()
                bound.value.completed(completion)
            }
        }
    }

    /// Starts what is to be started; sends in between when much is waiting already.
    private func pump() {
        startWork()
        while let transmission, transmission.shouldSend {
            flush()
            transmission.proceed()
            startWork()
        }
    }

    private func completed(_ completion: AwaitedRequest.Completion) {
        guard let transmission else { return }  // the connection is gone, and so is its share of the budget
        lastProgress = .now()
        transmission.complete(completion)
        pump()
        scheduleFlush()
    }

    private func memoryGranted() {
        guard let transmission else { return }
        transmission.memoryGranted()
        pump()
        scheduleFlush()
    }

    /// One flush for everything that completes in this turn of the loop.
    private func scheduleFlush() {
        guard !isFlushScheduled, let context else { return }
        isFlushScheduled = true
        let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
        context.eventLoop.execute {
            bound.value.isFlushScheduled = false
            bound.value.pump()
            bound.value.flush()
            bound.value.settle()
        }
    }

    // MARK: Out

    private func send(_ bytes: [UInt8]) {
        guard !bytes.isEmpty, let context else { return }
        unsentByteCount += bytes.count
        write([context.channel.allocator.buffer(bytes: bytes)], byteCount: bytes.count, context)
    }

    private func flush() {
        guard let transmission, let context else { return }
        let buffers = transmission.takeOutput()
        guard !buffers.isEmpty else { return }
        let count = buffers.reduce(0) { $0 + $1.readableBytes }
        unsentByteCount += count
        write(buffers, byteCount: count, context)
    }

    /// All buffers leave in one vectored write, if the socket takes them.
    private func write(_ buffers: [ByteBuffer], byteCount: Int, _ context: ChannelHandlerContext) {
        for buffer in buffers.dropLast() { context.write(wrapOutboundOut(buffer), promise: nil) }
        guard let last = buffers.last else { return }
        let sent = context.eventLoop.makePromise(of: Void.self)
        let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
        let isReply = transmission != nil
        sent.futureResult.whenSuccess { bound.value.didSend(byteCount, isReply: isReply) }
        context.writeAndFlush(wrapOutboundOut(last), promise: sent)
    }

    /// - Parameter isReply: the bytes came from the transmission, not from the handshake before it.
    private func didSend(_ byteCount: Int, isReply: Bool) {
        unsentByteCount -= byteCount
        lastProgress = .now()
        if let transmission {
            if isReply { transmission.didSend(byteCount) }
            startWork()
            scheduleFlush()  // also what `shouldSend` says: no flush from inside a flush
        } else if !isClosing, handshake != nil {
            advanceHandshake()
            readIfWanted()
        } else if isClosing, unsentByteCount == 0 {
            context?.close(promise: nil)
        }
    }

    // MARK: What next

    /// Closes when all is done, reads when more is wanted.
    private func settle() {
        if let transmission, transmission.isFinished, unsentByteCount == 0, !isFlushScheduled {
            return close(transmission.violation)
        }
        if isDraining, isIdle { scheduleFarewell() }
        readIfWanted()
        watchForStalls()
    }

    private func readIfWanted() {
        guard !isReadPending, !isClosing, let context else { return }
        guard transmission?.wantsBytes ?? (unsentByteCount < Self.handshakeOutputLimit) else { return }
        isReadPending = true
        context.read()
    }

    /// Closes once what is on its way is sent; later bytes from the client are not looked at.
    private func close(_ violation: ProtocolViolation?) {
        guard !isClosing else { return }
        isClosing = true
        handshakeDeadline?.cancel()
        handshake = nil
        inbox = ByteBuffer()
        if let violation { environment.journal.violated(identity, violation) }
        // A peer that does not read must not keep its connection.
        guard unsentByteCount > 0, violation != .handshakeTimeout, violation != .stalled, let context else {
            context?.close(promise: nil)
            return
        }
        let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
        context.eventLoop.scheduleTask(in: .seconds(5)) { bound.value.context?.close(promise: nil) }
    }

    /// A connection in the middle of something is looked at now and then: memory that it holds while others wait is taken from it.
    private func watchForStalls() {
        guard stallCheck == nil, let context, let transmission, transmission.isMidMessage || unsentByteCount > 0 else { return }
        let limit = TimeAmount(environment.configuration.stallLimit)
        let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
        stallCheck = context.eventLoop.scheduleTask(in: limit) {
            let handler = bound.value
            handler.stallCheck = nil
            guard let transmission = handler.transmission else { return }
            if transmission.holdsMemory, transmission.requestsInFlight == 0, handler.environment.budget.isContended,
                .now() - handler.lastProgress >= limit
            {
                handler.close(.stalled)
            } else {
                handler.watchForStalls()
            }
        }
    }

    // MARK: Shutdown

    /// Finishes what is in flight, answers what comes later with ESHUTDOWN, then closes.
    func drain() {
        guard !isDraining, context != nil else { return }
        isDraining = true
        handshake?.shutDown()
        if let transmission {
            transmission.beginShutdown()
            settle()
        } else {
            scheduleFarewell()
        }
    }

    private var isFarewellScheduled = false

    private func scheduleFarewell() {
        guard !isFarewellScheduled, let context else { return }
        isFarewellScheduled = true
        let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
        context.eventLoop.scheduleTask(in: Self.farewell) {
            let handler = bound.value
            handler.isFarewellScheduled = false
            if handler.transmission == nil || handler.isIdle { handler.close(nil) }
        }
    }

    /// Nothing is in flight in either direction. A request whose payload is still arriving came before the end, and is waited for.
    private var isIdle: Bool {
        guard let transmission else { return false }
        return transmission.requestsInFlight == 0 && !transmission.isMidMessage && unsentByteCount == 0
    }

    /// Cuts the connection, whatever is in flight.
    func cut() { context?.close(promise: nil) }
}
