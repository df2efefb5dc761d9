import Block
public import HostIO
public import NBDEngine
import NBDProtocol
import NIOCore

/// The fast face of a plain connection in transmission: its socket on a `HostLoop`.
///
/// What NIO's face cannot do: it receives into one buffer for all connections of the loop, sends pages of files from where they are, in one
/// call with everything else of the turn, and does all of it without an allocation for a request (see docs/decisions/0013).
final class LoopConnection: LoopClient, ConnectionFace {
    private let identity: ConnectionIdentity
    private let environment: ConnectionEnvironment
    private var loop: FastLoop
    /// What is sent to the connection goes here, in case it moves.
    private let address: LoopAddress
    private let socket: StreamSocket
    private var shell: TransmissionShell?
    /// By which the loop knows us.
    private var id: UInt64?
    /// Bytes may have arrived: news comes only once.
    private var mayHaveInput = true
    /// The peer has closed its side: after the last bytes there is an end to be seen.
    private var isHungUp = false
    private var hasRoom = true
    private var isTurnRequested = false
    private var isDraining = false
    private var isEnded = false
    /// Replies leave the transmission when they have left the process.
    let unsentByteCount = 0

    /// Receives for one connection before others have their turn.
    private static let receiveLimit = 4

    private init(_ socket: StreamSocket, _ loop: FastLoop, _ identity: ConnectionIdentity, _ environment: ConnectionEnvironment) {
        self.identity = identity
        self.environment = environment
        self.loop = loop
        address = LoopAddress(loop.host)
        self.socket = socket
    }

    /// Takes a connection over from its NIO channel, which is to be closed then.
    ///
    /// - Parameters:
    ///   - descriptor: the channel's socket; the connection gets a number of its own for it.
    ///   - inbox: what has arrived and belongs to the transmission.
    /// - Returns: the connection's new handle; nil when this process has no room for it: it stays where it is.
    static func take(
        _ descriptor: CInt, _ session: Session, _ export: ServedExport, inbox: ByteBuffer, isDraining: Bool, _ identity: ConnectionIdentity,
        _ environment: ConnectionEnvironment, clock: any EventLoop
    ) -> ConnectionHandle? {
        guard let loop = environment.fastLoops.min(by: { $0.host.clientCount < $1.host.clientCount }),
            let socket = try? StreamSocket(duplicating: descriptor)
        else { return nil }
        loop.host.reserve()
        let connection = LoopConnection(socket, loop, identity, environment)
        let bound = LoopBound(connection, connection.address)
        let handle = ConnectionHandle(drain: { bound.execute { $0.drain() } }, cut: { bound.execute { $0.end() } })
        // First of all: once started, a connection may be over at any moment.
        let mustDrain = environment.moved(identity, handle) || isDraining
        bound.execute { connection in
            if mustDrain { connection.drain() }
            connection.start(session, export, inbox, clock)
        }
        return handle
    }

    private func drain() {
        isDraining = true
        shell?.drain()
    }

    private func start(_ session: Session, _ export: ServedExport, _ inbox: ByteBuffer, _ clock: any EventLoop) {
        guard !isEnded else { return }
        let shell = TransmissionShell(
            session, export, identity: identity, environment: environment, loop: address, clock: clock, pool: loop.shared.pool,
            sendsSegments: true, face: self)
        self.shell = shell
        if isDraining { shell.drain() }
        do throws(HostError) {
            id = try loop.host.add(self, socket, pollLimit: environment.configuration.pollNanoseconds)
        } catch {
            environment.journal.failed(identity, error)
            return end()
        }
        if inbox.readableBytes > 0 { shell.transmission.receive(inbox) }
        work()
    }

    private func end() {
        guard !isEnded else { return }
        isEnded = true
        if let id { loop.host.remove(id, socket) } else { loop.host.withdraw() }
        shell?.end()
        shell = nil
        environment.journal.disconnected(identity)
        environment.ended(identity)
    }

    // MARK: From loop to loop

    func move(toLoop number: Int, then done: @escaping @Sendable (Bool) -> Void) {
        let target = environment.fastLoops[number]
        guard !isEnded, let id, target !== loop else { return done(false) }
        guard !isTurnRequested else {
            // The loop has us on a list still.
            let bound = LoopBound(self, address)
            return bound.execute { $0.move(toLoop: number, then: done) }
        }
        self.id = nil
        loop.host.remove(id, socket)
        target.host.reserve()
        let bound = LoopBound(self, target.host)
        address.change(to: target.host) {
            bound.value.arrive(on: target)
            done(true)
        }
    }

    private func arrive(on target: FastLoop) {
        loop = target
        shell?.transmission.move(to: target.shared.pool)
        do throws(HostError) {
            id = try target.host.add(self, socket, pollLimit: environment.configuration.pollNanoseconds)
        } catch {
            environment.journal.failed(identity, error)
            return end()
        }
        // What has changed meanwhile is found out by trying.
        mayHaveInput = true
        hasRoom = true
        work()
    }

    // MARK: The loop's calls

    func socketIsReady(input: Bool, output: Bool, hangup: Bool) {
        if hangup { isHungUp = true }
        if input || hangup { mayHaveInput = true }
        if output || hangup, !hasRoom {
            hasRoom = true
            if let id { loop.host.watchOutput(id, socket, false) }
        }
        work()
    }

    func poll() -> Bool {
        guard let shell, hasRoom, shell.transmission.wantsBytes else { return false }
        mayHaveInput = true
        guard receive(shell) else { return false }
        self.shell?.settle()
        return true
    }

    func turn() {
        isTurnRequested = false
        work()
        if shell?.transmission.isHeldUp == true { HostLoop.giveWay() }
    }

    func requestTurn() {
        guard !isTurnRequested, shell != nil else { return }
        isTurnRequested = true
        loop.host.requestTurn(self)
    }

    // MARK: Work

    private func work() {
        guard let shell else { return }
        flush()
        shell.transmission.proceed()
        shell.pump()
        flush()
        _ = receive(shell)
        self.shell?.settle()
    }

    /// Returns whether there was anything.
    private func receive(_ shell: TransmissionShell) -> Bool {
        let shared = loop.shared
        shell.transmission.writePolicy = WritePolicy(isLocal: socket.isLocal, loop.host)
        // TCP's calls are dear: it answers when there is nothing more to be received.
        let answersAtEnd = !socket.isLocal
        defer { if answersAtEnd { flush() } }
        var count = 0
        while mayHaveInput, shell.transmission.wantsBytes, self.shell != nil {
            guard count < Self.receiveLimit else {
                requestTurn()
                return true
            }
            let (outcome, limit) = shell.transmission.receive(sharing: &shared.inbox) { [socket] output, limit in
                (socket.receive(into: &output, limit: limit), limit)
            }
            switch outcome {
            case .bytes(let byteCount):
                shell.noteProgress(byteCount)
                // Less than there was room for: that was all.
                if byteCount < limit, !isHungUp { mayHaveInput = false }
            case .wouldBlock:
                mayHaveInput = false
                return count > 0
            case .ended:
                mayHaveInput = false
                shell.transmission.endOfInput()
            case .failed(let error):
                environment.journal.failed(identity, error)
                end()
                return true
            }
            count += 1
            shell.pump()
            // More than replies to writes: somebody has read.
            if !answersAtEnd || shell.transmission.outputByteCount > 4096 || !shell.transmission.wantsBytes { flush() }
        }
        return count > 0
    }

    /// More is wanted: there may be bytes that were left where they are.
    func readIfWanted() {
        guard let shell else { return }
        if shell.transmission.isHeldUp || mayHaveInput && shell.transmission.wantsBytes { requestTurn() }
    }

    func flush() {
        while hasRoom, let shell, shell.transmission.outputByteCount > 0 {
            let shared = loop.shared
            shared.outbox.removeAll(refersToPages: shell.transmission.placesAreFixed && loop.transfers.isFirst)
            shell.transmission.showOutput(to: &shared.outbox)
            guard shared.outbox.byteCount > 0 else { return end() }  // never: what is at hand has an address
            switch socket.send(&shared.outbox) {
            case .bytes(let byteCount):
                if byteCount < shared.outbox.byteCount { waitForRoom() }
                if shared.outbox.hasFiles { lookForFaults(shared) }
                if shared.outbox.hasLongPieces, shell.transmission.placesAreFixed { loop.noteTransfer(byteCount) }
                shell.transmission.dropOutput(byteCount)
                shell.noteProgress(byteCount)
            case .wouldBlock:
                waitForRoom()
            case .ended:
                return
            case .failed(let error):
                // The peer is gone; or bytes were promised by their header, and are not there: the file was made shorter, or its disk failed.
                environment.journal.failed(identity, error)
                end()
            }
        }
    }

    private func waitForRoom() {
        hasRoom = false
        if let id { loop.host.watchOutput(id, socket, true) }
    }

    /// A page that was believed to be in memory, and was not, has kept everybody waiting.
    private func lookForFaults(_ shared: FastLoop.Shared) {
        if shared.outbox.hasWaited { shared.outbox.forgetWhatIsAtHand() }
        shared.sendCount &+= 1
        guard shared.outbox.byteCount >= 128 << 10 || shared.sendCount % 16 == 0 else { return }
        let count = loop.host.majorFaultCount
        guard count != shared.majorFaultCount else { return }
        shared.majorFaultCount = count
        shared.outbox.forgetWhatIsAtHand()
    }

    func close(_ violation: ProtocolViolation?) {
        if let violation { environment.journal.violated(identity, violation) }
        end()
    }
}

extension WritePolicy {
    fileprivate init(isLocal: Bool, _ loop: HostLoop) {
        self.init()
        if !isLocal { aloneFloor = 48 << 10 }
        exclusiveFloor = 128 << 10
        if loop.isShared {
            // While others wait for the loop, a client that is told early takes the core away that somebody needs, and sends more than can be
            // dealt with: what waits in the kernel grows cold there.
            turnByteCount = isLocal ? 256 << 10 : 16 << 20
            longTurnByteCount = turnByteCount
        } else {
            // Two of 64 KiB: the client sends the next two while we write two others. With four, who has four under way waits for us, and we for them.
            longTurnByteCount = 128 << 10
            // Shorter ones are better written by the core that has their bytes in its cache. And over TCP both cores are at work anyway.
            if isLocal, loop.hasHelp { handOverFloor = 256 << 10 }
        }
    }
}

extension GatherList: OutputSink {}
