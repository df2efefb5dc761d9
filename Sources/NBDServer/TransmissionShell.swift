import Block
import HostIO
import NBDEngine
import NBDProtocol
import NIOCore

/// The socket of a client in transmission, as its shell sees it. On the connection's loop.
protocol ConnectionFace: AnyObject {
    /// Bytes of replies that were taken from the transmission and have not left.
    var unsentByteCount: Int { get }
    /// Sends the transmission's replies, as far as the socket takes them.
    func flush()
    /// Goes on reading if the transmission wants bytes.
    func readIfWanted()
    /// Calls `TransmissionShell.turn` once what has come in meanwhile is dealt with.
    func requestTurn()
    func close(_ violation: ProtocolViolation?)
    /// Moves to the loop of this number; the transmission is paused. Calls back with whether it has moved.
    func move(toLoop number: Int, then done: @escaping @Sendable (Bool) -> Void)
}

/// What is around a `Transmission` whatever its socket is like: tasks for its work, turns, stalls, and the end.
///
/// Belongs to the connection's loop. The face passes on what the socket does; the shell obeys the rules of `Transmission`.
final class TransmissionShell {
    /// How long a client may still be told ESHUTDOWN before its idle connection is closed (P-TERM-05).
    static let farewell = TimeAmount.milliseconds(250)
    /// Turns after which other connections of the loop are looked at.
    static let turnLimit = 4

    var transmission: Transmission
    private let environment: ConnectionEnvironment
    private let loop: any ConnectionLoop
    /// Knows the time.
    private let clock: any EventLoop
    private unowned let face: any ConnectionFace
    private let box: LoopBound<Box>
    private var watch = ProgressWatch()
    private var isWatching = false
    private var isFarewellScheduled = false
    private var isDraining = false
    private var isOver = false
    private let gate: ExportGate
    private var membership: UInt64?
    /// Tasks that run, and reads without one. They go on when the connection is gone.
    private var taskCount = 0
    private var waitingForQuiet: [@Sendable () -> Void] = []

    /// - Parameters:
    ///   - pool, sendsSegments: see `Transmission`.
    ///   - face: outlives the shell.
    init(
        _ session: Session, _ export: ServedExport, identity: ConnectionIdentity, environment: ConnectionEnvironment, loop: any ConnectionLoop,
        clock: any EventLoop, pool: BufferPool, sendsSegments: Bool, face: any ConnectionFace
    ) {
        self.environment = environment
        self.loop = loop
        self.clock = clock
        self.face = face
        gate = export.gate
        var limits = TransmissionLimits()
        limits.requestLimit = max(1, environment.configuration.requestLimit)
        limits.byteCountLimit = environment.configuration.connectionMemoryLimit
        let box = LoopBound(Box(), loop)
        self.box = box
        transmission = Transmission(
            session: session, device: export.device, sources: export.sources, limits: limits, budget: environment.budget, pool: pool,
            sendsSegments: sendsSegments, writeTurns: gate.writeTurns,
            trace: environment.tracer(for: identity), wake: { box.execute { $0.shell?.memoryGranted() } })
        box.value.shell = self
        let me = LoopBound(self, loop)
        let (id, isPaused) = gate.join(
            ExportGate.Member(
                pause: { done in me.execute { $0.pause(done) } }, resume: { me.execute { $0.resume() } },
                move: { number, done in me.execute { $0.move(toLoop: number, done) } }))
        membership = id
        if isPaused { transmission.pause() }
        environment.journal.attached(identity, session)
        environment.attachmentChanged(true)
    }

    /// The connection is gone.
    func end() {
        guard !isOver else { return }
        isOver = true
        box.value.shell = nil
        transmission.abandon()
        environment.attachmentChanged(false)
        reportIfQuiet()
    }

    // MARK: Pause

    private func pause(_ done: @escaping @Sendable () -> Void) {
        waitingForQuiet.append(done)
        if !isOver { transmission.pause() }
        reportIfQuiet()
    }

    private func resume() {
        guard !isOver, !gate.isPaused else { return }
        transmission.resume()
        pump()
        face.requestTurn()
    }

    /// Tells who waits when nothing of this connection touches the device any more; after its end also the gate, that it is gone.
    private func reportIfQuiet() {
        guard taskCount == 0, isOver || transmission.isQuiet else { return }
        let waiting = waitingForQuiet
        waitingForQuiet = []
        for done in waiting { done() }
        guard isOver, let membership else { return }
        self.membership = nil
        gate.leave(membership)
    }

    private func move(toLoop number: Int, _ done: @escaping @Sendable (Bool) -> Void) {
        guard !isOver, transmission.isQuiet else { return done(false) }
        face.move(toLoop: number, then: done)
    }

    // MARK: Work

    /// So many bytes have come or gone.
    func noteProgress(_ byteCount: Int) { watch.movedByteCount &+= byteCount }

    private func startWork() {
        let work = transmission.takeWork()
        guard !work.isEmpty else { return }
        let bound = LoopBound(self, loop)
        taskCount += work.count
        for request in work where !startWithoutTask(request, bound) { startTask(request, bound) }
    }

    private func startTask(_ request: AwaitedRequest, _ bound: LoopBound<TransmissionShell>) {
        Task(executorPreference: loop.home) {
            let completion = await request.run()
            bound.value.ended { $0.complete(completion) }
        }
    }

    /// A short read of a file that the loop's ring can do, or a long write for which another loop has time.
    private func startWithoutTask(_ request: AwaitedRequest, _ bound: LoopBound<TransmissionShell>) -> Bool {
        switch request.shortcut {
        case .read(from: .file(let file, let offset, let count)):
            return file.beginRead(at: offset, count: count) { bytes in
                let shell = bound.value
                guard let bytes else { return shell.startTask(request, bound) }
                shell.ended { $0.complete(request, with: bytes) }
            }
        case .write(to: let place):
            let turns = gate.writeTurns
            let isHandedOver = HostLoop.handOver({ request.write(to: place, turns) }) { bound.value.wrote(request, $0, bound) }
            if !isHandedOver { transmission.complete(request, isWritten: false) }
            return isHandedOver
        case .read, nil:
            return false
        }
    }

    private func wrote(_ request: AwaitedRequest, _ isWritten: Bool, _ bound: LoopBound<TransmissionShell>) {
        transmission.complete(request, isWritten: isWritten)
        if isWritten { ended { _ in } } else { startTask(request, bound) }
    }

    /// Starts what is to be started; sends in between when much is waiting already.
    func pump() {
        startWork()
        var turns = 0
        while transmission.shouldSend {
            guard turns < Self.turnLimit else { return face.requestTurn() }
            turns += 1
            face.flush()
            guard !transmission.shouldSend else { return }  // the socket is full
            transmission.proceed()
            startWork()
        }
    }

    /// A request was carried out.
    private func ended(_ complete: (inout Transmission) -> Void) {
        taskCount -= 1
        guard !isOver else { return reportIfQuiet() }  // the connection is gone, and so is its share of the budget
        complete(&transmission)
        pump()
        face.requestTurn()
        if transmission.isPaused { reportIfQuiet() }
    }

    private func memoryGranted() {
        guard !isOver else { return }
        transmission.memoryGranted()
        pump()
        face.requestTurn()
    }

    /// Replies of this many bytes have left; for faces that take output as a whole.
    func didSend(_ byteCount: Int) {
        transmission.didSend(byteCount)
        startWork()
        face.requestTurn()  // also what `shouldSend` says: no flush from inside a flush
    }

    func turn() {
        guard !isOver else { return }
        pump()
        face.flush()
        settle()
    }

    // MARK: What next

    private var unsentByteCount: Int { face.unsentByteCount + transmission.outputByteCount }

    /// Closes when all is done, reads when more is wanted.
    func settle() {
        guard !isOver else { return }
        if transmission.isFinished, unsentByteCount == 0 { return face.close(transmission.violation) }
        if isDraining, isIdle { scheduleFarewell() }
        if transmission.isPaused { reportIfQuiet() }
        face.readIfWanted()
        watchForStalls()
    }

    /// A connection in the middle of something is looked at now and then: one that is in the way of others has to go, and one that is not
    /// going anywhere, too.
    private func watchForStalls() {
        guard !isWatching, isAwaitingPeer else {
            return
        }
        let limits = ProgressWatch.Limits(environment.configuration)
        guard let period = limits.period else { return }
        isWatching = true
        watch.begin(requestCount: transmission.requestCount)
        after(TimeAmount(period)) { $0.lookForStall(limits) }
    }

    private func lookForStall(_ limits: ProgressWatch.Limits) {
        isWatching = false
        let verdict = watch.verdict(
            limits, isAwaitingPeer: isAwaitingPeer && transmission.requestsInFlight == 0, requestCount: transmission.requestCount,
            heldByteCount: transmission.holdsMemory ? transmission.memoryByteCount : nil, isContended: environment.budget.isContended)
        if let verdict { return face.close(verdict) }
        watchForStalls()
    }

    private var isAwaitingPeer: Bool { transmission.isMidMessage && !transmission.isPaused || unsentByteCount > 0 }

    private func after(_ time: TimeAmount, _ body: @escaping @Sendable (TransmissionShell) -> Void) {
        let box = box
        clock.scheduleTask(in: time) {
            box.execute { if let shell = $0.shell { body(shell) } }
        }
    }

    // MARK: Shutdown

    /// Finishes what is in flight, answers what comes later with ESHUTDOWN, then closes.
    func drain() {
        guard !isDraining, !isOver else { return }
        isDraining = true
        transmission.beginShutdown()
        settle()
    }

    private func scheduleFarewell() {
        guard !isFarewellScheduled else { return }
        isFarewellScheduled = true
        after(Self.farewell) { shell in
            shell.isFarewellScheduled = false
            if shell.isIdle { shell.face.close(nil) }
        }
    }

    /// Nothing is in flight in either direction. A request whose payload is still arriving came before the end, and is waited for.
    private var isIdle: Bool {
        transmission.requestsInFlight == 0 && !transmission.isMidMessage && unsentByteCount == 0
    }
}

/// Leads to a shell until its connection is gone. A weak reference would do that, too; but whatever has one counts all its references slowly.
private final class Box {
    var shell: TransmissionShell?
}
