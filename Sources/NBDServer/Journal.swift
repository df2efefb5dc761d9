import Logging
import NBDProtocol
import Synchronization

/// The log of a server. What a stranger can cause is rate limited, so that nobody can fill a disk by misbehaving (S-BUG-27).
struct Journal: Sendable {
    let logger: Logger
    private let limiter = Limiter()
    private let tally = Tally()

    init(logger: Logger) { self.logger = logger }

    var counters: Counters { tally.counters.withLock { $0 } }

    func count(_ change: (inout Counters) -> Void) { tally.counters.withLock { change(&$0) } }

    func connected(_ identity: ConnectionIdentity) {
        count { $0.connections += 1 }
        logger.debug("client connected", metadata: metadata(identity))
    }

    func attached(_ identity: ConnectionIdentity, _ session: Session) {
        count { $0.sessions += 1 }
        var metadata = metadata(identity)
        metadata["export"] = "\(session.export.name.sanitized())"
        metadata["mode"] = "\(session.mode)"
        logger.debug("client uses export", metadata: metadata)
    }

    func encrypted(_ identity: ConnectionIdentity, _ peer: PeerIdentity) {
        logger.debug("client encrypts", metadata: metadata(identity, peer))
    }

    func disconnected(_ identity: ConnectionIdentity) {
        logger.debug("client disconnected", metadata: metadata(identity))
    }

    /// - Parameter peer: who it was that the rules refused; of no interest for what anybody may do wrong.
    func violated(_ identity: ConnectionIdentity, _ violation: ProtocolViolation, by peer: PeerIdentity? = nil) {
        count { $0.count(violation) }
        // A client that hangs up in the greeting is a port probe (S-NEW-14).
        report("connection closed: \(violation)", metadata(identity, violation == .notAdmitted ? peer : nil))
    }

    /// - Parameter name: as the client wrote it.
    func refusedExport(_ identity: ConnectionIdentity, _ peer: PeerIdentity, _ name: String, isHidden: Bool) {
        count { $0.refusedExports += 1 }
        // Who asks for what is not there has made a mistake; who asks for what is not theirs is worth a line.
        if isHidden { report("export '\(name.sanitized())' refused by the server's rules", metadata(identity, peer)) }
    }

    func full(_ limit: Int) {
        count { $0.timesFull += 1 }
        // One client at a time is what was asked for.
        guard limit > 1 else { return }
        report("all \(limit) places are taken: new clients wait", [:])
    }

    func lacksMemory(_ limit: Int) {
        count { $0.memoryWaits += 1 }
        report("all \(limit) bytes for requests and replies are in use: clients wait", [:])
    }

    func cannotAccept(_ error: any Error) {
        count { $0.acceptFailures += 1 }
        report("cannot accept connections for the moment: \(error)", [:])
    }

    func failed(_ identity: ConnectionIdentity, _ error: any Error) {
        logger.debug("connection lost: \(error)", metadata: metadata(identity))
    }

    private func report(_ text: String, _ metadata: Logger.Metadata) {
        switch limiter.admit(now: .now) {
        case .no: count { $0.suppressedLines += 1 }
        case .yes(let suppressed):
            var metadata = metadata
            if suppressed > 0 { metadata["suppressed"] = "\(suppressed)" }
            logger.notice("\(text)", metadata: metadata)
        }
    }

    /// - Parameter peer: adds what rules know of it, under the names of their keys.
    private func metadata(_ identity: ConnectionIdentity, _ peer: PeerIdentity? = nil) -> Logger.Metadata {
        var metadata: Logger.Metadata = ["connection": "\(identity.id)", "peer": "\(identity.peer)"]
        if let unix = peer?.unix {
            metadata["uid"] = "\(unix.uid)"
            metadata["gid"] = "\(unix.gid)"
            metadata["pid"] = "\(unix.pid)"
        }
        switch peer?.tls {
        case .certificate(let name): metadata["tls-dn"] = "\(name.sanitized(limit: 400))"
        case .psk(let user): metadata["tls-user"] = "\(user.sanitized(limit: 400))"
        case .anonymous, .some(.none), nil: break
        }
        return metadata
    }

    private final class Tally: Sendable {
        let counters = Mutex(Counters())
    }

    /// At most ten lines in ten seconds; tells how many were left out.
    final class Limiter: Sendable {
        enum Answer: Equatable { case yes(suppressed: Int), no }

        static let lineLimit = 10
        static let period = Duration.seconds(10)

        private struct State {
            var start: ContinuousClock.Instant?
            var lines = 0
            var suppressed = 0
        }

        private let state = Mutex(State())

        func admit(now: ContinuousClock.Instant) -> Answer {
            state.withLock { state in
                if let start = state.start, now - start < Self.period {
                    guard state.lines < Self.lineLimit else {
                        state.suppressed += 1
                        return .no
                    }
                } else {
                    state.start = now
                    state.lines = 0
                }
                state.lines += 1
                defer { state.suppressed = 0 }
                return .yes(suppressed: state.suppressed)
            }
        }
    }
}
