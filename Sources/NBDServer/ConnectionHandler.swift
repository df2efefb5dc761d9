import NBDEngine
import NBDProtocol
import NBDTLS
import NIOCore
import NIOTLS

/// The NIO face of one connection: moves bytes between its socket and the sans-IO machines, and knows the clock.
///
///     greeting → ServerHandshake → Transmission → closing
///                              └─▶ a `LoopConnection`, where there is a loop for it
///
/// Reads only when the machine wants bytes (`autoRead` is off): that is the whole of back-pressure.
final class ConnectionHandler: ChannelInboundHandler, ConnectionFace {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    /// Answers of the handshake that may wait to be sent; more than one LIST of a big server fits.
    static let handshakeOutputLimit = 256 << 10

    let identity: ConnectionIdentity
    /// Complete once TLS, where there is to be any, is up.
    var peer: PeerIdentity
    let environment: ConnectionEnvironment
    let listener: Listener
    let executor: LoopExecutor
    /// The socket's number, as long as the channel is open; nil when it is not known.
    private let descriptor: CInt?
    private var context: ChannelHandlerContext?
    private var handshake: ServerHandshake?
    private var shell: TransmissionShell?
    /// What the handshake has not used yet.
    private var inbox = ByteBuffer()
    private var chosenExport: ServedExport?
    private var handshakeDeadline: Scheduled<Void>?
    private(set) var unsentByteCount = 0
    private var isReadPending = false
    private var isTurnRequested = false
    private(set) var isClosing = false
    private var isDraining = false
    /// The client will send no more.
    private var isInputOver = false
    /// Set from STARTTLS on; `tlsContext` is its handler's place in the pipeline.
    private(set) var tls: TLSServerSession?
    private var tlsContext: ChannelHandlerContext?
    /// Under TLS: replies that are not encrypted yet.
    var outbox = CircularBuffer<ByteBuffer>()
    /// Bytes that were given to TLS and have not left.
    var encryptedByteCount = 0
    var isEncrypting = false
    /// Set when all of the handshake's bytes must be gone before the connection moves.
    private var departure: (session: Session, export: ServedExport)?
    /// Who took the connection over.
    private var successor: ConnectionHandle?
    var hasMoved: Bool { successor != nil }

    init(
        identity: ConnectionIdentity, peer: PeerIdentity, environment: ConnectionEnvironment, listener: Listener, descriptor: CInt?,
        loop: any EventLoop
    ) {
        self.identity = identity
        self.peer = peer
        self.environment = environment
        self.listener = listener
        self.descriptor = descriptor
        executor = LoopExecutor(loop)
    }

    private var tracer: Tracer? { environment.tracer(for: identity) }

    // MARK: The channel's life

    func channelActive(context: ChannelHandlerContext) {
        self.context = context
        environment.journal.connected(identity)
        // Who may encrypt may prove more of itself, and is judged again then.
        guard tlsPolicy == .off ? environment.admits(peer) : environment.greets(peer) else { return close(.notAdmitted) }
        if let name = listener.oldstyleExport { return beginOldstyle(name) }
        let handshake = ServerHandshake(
            limits: environment.configuration.handshakeLimits, isListable: listener.isListable, tls: tlsPolicy, trace: tracer)
        var greeting: [UInt8] = []
        handshake.start(output: &greeting)
        self.handshake = consume handshake
        send(greeting)
        let limit = environment.configuration.handshakeLimit
        if limit > .zero {
            let bound = LoopBound(self, executor)
            handshakeDeadline = context.eventLoop.scheduleTask(in: TimeAmount(limit)) {
                bound.value.tracer?(.handshakeTimeout)
                bound.value.close(.handshakeTimeout)
            }
        }
        readIfWanted()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        var bytes = unwrapInboundIn(data)
        if let shell {
            shell.noteProgress(bytes.readableBytes)
            shell.transmission.receive(bytes)
            shell.pump()
        } else if !isClosing {
            inbox.writeBuffer(&bytes)
            if departure == nil { advanceHandshake() }
        }
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        isReadPending = false
        guard let shell else {
            departIfReady()
            return readIfWanted()
        }
        flush()
        shell.settle()
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if case TLSUserEvent.handshakeCompleted = event { return tlsCompleted() }
        guard case ChannelEvent.inputClosed = event else { return context.fireUserInboundEventTriggered(event) }
        isInputOver = true
        // Our own goodbye was answered.
        guard !isClosing else { return cut() }
        guard let shell else {
            // Who takes the connection over sees the end of input, too.
            if departure == nil { close(nil) }
            return
        }
        shell.transmission.endOfInput()
        isReadPending = true  // nothing will come any more
        shell.turn()
    }

    func channelInactive(context: ChannelHandlerContext) {
        isClosing = true
        handshakeDeadline?.cancel()
        handshake = nil
        departure = nil
        shell?.end()
        shell = nil
        if !hasMoved { environment.journal.disconnected(identity) }
        self.context = nil
        tlsContext = nil
        context.fireChannelInactive()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        if TLSFailure.isUncleanEnd(error), !isClosing { return }  // an end of input, which is told apart
        if let reason = TLSFailure.explain(error), !isClosing {
            close(.tlsFailed(reason))
        } else {
            environment.journal.failed(identity, error)
        }
        cut()
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
                case .lookUp where !isAdmittedInClear, .list where !isAdmittedInClear:
                    action = .close(.notAdmitted)
                case .lookUp(let name):
                    action = answerLookUp(name, output: &output)
                case .list:
                    action = handshake?.answer(list: environment.list(for: peer), output: &output) ?? .close(nil)
                case .transmit, .close, .startTLS:
                    ending = action
                    break answering
                case .read:
                    break answering
                }
            }
            if consumed == 0, action == .read { break }
        }
        if case .startTLS = ending { return startTLS(after: output) }
        // A write may complete at once and come back to us: the handshake must be over by then.
        if ending != nil { handshake = nil }
        if case .transmit(let session) = ending {
            guard let export = chosenExport, export.description.id == session.export.id else { return close(nil) }
            departure = (session, export)
        }
        send(output)
        switch ending {
        case .transmit:
            // Within a read, `channelReadComplete` does it: until then more bytes may come.
            if !isReadPending { departIfReady() }
        case .close(let violation):
            close(violation)
        default:
            inbox.discardReadBytes()
        }
    }

    // For `ConnectionHandler+TLS`.

    var hasEmptyInbox: Bool { inbox.readableBytes == 0 }

    func install(_ session: TLSServerSession) throws {
        guard let pipeline = context?.pipeline.syncOperations else { return }
        tls = session
        try pipeline.addHandler(session.handler, position: .before(self))
        tlsContext = try pipeline.context(handler: session.handler)
    }

    func continueEncrypted() { handshake?.tlsStarted() }

    private func answerLookUp(_ name: String, output: inout [UInt8]) -> ServerHandshake.Action {
        chosenExport = nil
        switch environment.lookUp(name, for: peer) {
        case .found(let export):
            chosenExport = export
            return handshake?.answer(export.description, output: &output) ?? .close(nil)
        case .forbidden:
            environment.journal.refusedExport(identity, peer, name, isHidden: true)
            return handshake?.answerForbidden(output: &output) ?? .close(nil)
        case .unknown(let isHidden):
            environment.journal.refusedExport(identity, peer, name, isHidden: isHidden)
            return handshake?.answer(nil, output: &output) ?? .close(nil)
        }
    }

    private func beginOldstyle(_ name: String) {
        guard case .found(let export) = environment.lookUp(name, for: peer) else { return close(.exportNameRefused(name)) }
        tracer?(.negotiateOldStyle(size: export.description.byteCount, flags: export.description.flags))
        departure = (Session(export: export.description, flags: export.description.flags, mode: .simple, contexts: []), export)
        send(oldstyleGreeting(for: export.description))
        departIfReady()
    }

    // MARK: Transmission

    /// Begins the transmission: on a loop made for it, or here.
    private func departIfReady() {
        guard let (session, export) = departure, let context, !isClosing else { return }
        handshakeDeadline?.cancel()
        environment.negotiated(identity)
        if let descriptor, tls == nil, !environment.fastLoops.isEmpty {
            // The last bytes of the handshake must be gone: from then on somebody else sends.
            guard unsentByteCount == 0 else { return }
            if let handle = LoopConnection.take(
                descriptor, session, export, inbox: inbox, isDraining: isDraining, identity, environment, clock: context.eventLoop)
            {
                departure = nil
                successor = handle
                inbox = ByteBuffer()
                return context.close(promise: nil)
            }
        }
        departure = nil
        let shell = TransmissionShell(
            session, export, identity: identity, environment: environment, loop: executor, clock: context.eventLoop, pool: BufferPool(),
            sendsSegments: false, face: self)
        self.shell = shell
        if isDraining { shell.drain() }
        if inbox.readableBytes > 0 {
            shell.transmission.receive(inbox)
            shell.pump()
        }
        inbox = ByteBuffer()
        flush()
        shell.settle()
    }

    /// One turn for everything that completes in this round of the loop.
    func requestTurn() {
        guard !isTurnRequested else { return }
        isTurnRequested = true
        LoopBound(self, executor).execute { handler in
            handler.isTurnRequested = false
            handler.shell?.turn()
        }
    }

    // MARK: Out

    func send(_ bytes: [UInt8]) {
        guard !bytes.isEmpty, let context else { return }
        unsentByteCount += bytes.count
        write([context.channel.allocator.buffer(bytes: bytes)], byteCount: bytes.count)
    }

    func flush() {
        guard let shell, context != nil else { return }
        let buffers = shell.transmission.takeOutput()
        guard !buffers.isEmpty else { return }
        let count = buffers.reduce(0) { $0 + $1.readableBytes }
        unsentByteCount += count
        guard tls == nil else { return encrypt(buffers) }
        write(buffers, byteCount: count)
    }

    /// All buffers leave in one vectored write, if the socket takes them.
    func write(_ buffers: [ByteBuffer], byteCount: Int) {
        guard let context else { return }
        for buffer in buffers.dropLast() { context.write(wrapOutboundOut(buffer), promise: nil) }
        guard let last = buffers.last else { return }
        let sent = context.eventLoop.makePromise(of: Void.self)
        let bound = LoopBound(self, executor)
        let isReply = shell != nil
        sent.futureResult.whenSuccess { bound.value.didSend(byteCount, isReply: isReply) }
        context.writeAndFlush(wrapOutboundOut(last), promise: sent)
    }

    /// - Parameter isReply: the bytes came from the transmission, not from the handshake before it.
    private func didSend(_ byteCount: Int, isReply: Bool) {
        unsentByteCount -= byteCount
        if let shell {
            shell.noteProgress(byteCount)
            if isReply, tls != nil { didEncrypt(byteCount) }
            if isReply { shell.didSend(byteCount) } else { requestTurn() }
        } else if isClosing {
            if unsentByteCount == 0 { closeChannel() }
        } else if handshake != nil {
            advanceHandshake()
            readIfWanted()
        } else if !isReadPending {
            departIfReady()
        }
    }

    // MARK: What next

    func readIfWanted() {
        guard !isReadPending, !isClosing, departure == nil, !hasMoved, let context else { return }
        guard shell?.transmission.wantsBytes ?? (unsentByteCount < Self.handshakeOutputLimit) else { return }
        isReadPending = true
        context.read()
    }

    /// Closes once what is on its way is sent; later bytes from the client are not looked at.
    func close(_ violation: ProtocolViolation?) {
        guard !isClosing else { return }
        isClosing = true
        handshakeDeadline?.cancel()
        handshake = nil
        departure = nil
        inbox = ByteBuffer()
        if let violation { environment.journal.violated(identity, violation, by: peer) }
        // A peer that does not read must not keep its connection.
        guard violation?.isAboutTime != true else { return cut() }
        guard unsentByteCount > 0, let context else { return closeChannel() }
        let bound = LoopBound(self, executor)
        context.eventLoop.scheduleTask(in: .seconds(5)) { bound.value.cut() }
    }

    /// With TLS: says goodbye, and waits a little for the answer (S-TLS-13, P-TLS-12).
    private func closeChannel() {
        guard let context else { return }
        context.close(promise: nil)
        guard let tlsContext else { return }
        if isInputOver {
            tlsContext.close(promise: nil)
        } else if !isReadPending {
            isReadPending = true
            context.read()
        }
    }

    /// A channel of NIO stays on its loop.
    func move(toLoop number: Int, then done: @escaping @Sendable (Bool) -> Void) { done(false) }

    // MARK: Shutdown

    /// Finishes what is in flight, answers what comes later with ESHUTDOWN, then closes.
    func drain() {
        if let successor { return successor.drain() }
        guard !isDraining, let context else { return }
        isDraining = true
        handshake?.shutDown()
        if let shell { return shell.drain() }
        let bound = LoopBound(self, executor)
        context.eventLoop.scheduleTask(in: TransmissionShell.farewell) {
            if bound.value.shell == nil, !bound.value.hasMoved { bound.value.close(nil) }
        }
    }

    /// Makes way for another handshake, unless this one is just over.
    func crowdOut() {
        guard shell == nil, departure == nil, !hasMoved else { return }
        close(.crowdedOut)
    }

    /// Cuts the connection, whatever is in flight.
    func cut() {
        if let successor { return successor.cut() }
        // From the place of TLS on, which would only begin to say goodbye.
        (tlsContext ?? context)?.close(promise: nil)
    }
}

extension ProtocolViolation {
    /// The client does not keep up: its connection must not wait for it to read what it was sent.
    var isAboutTime: Bool {
        switch self {
        case .handshakeTimeout, .stalled, .tooSlow, .crowdedOut: true
        default: false
        }
    }
}
