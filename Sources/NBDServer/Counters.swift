import NBDProtocol
import Synchronization

/// What a server has lived through since it started: a snapshot. Everything that a limit did to somebody is in here.
public struct Counters: Equatable, Sendable {
    /// Clients let in.
    public var connections: UInt64 = 0
    /// Exports chosen: transmissions begun.
    public var sessions: UInt64 = 0
    /// Times that all places were taken, so that clients had to wait (`connectionLimit`).
    public var timesFull: UInt64 = 0
    /// Clients turned away because their peer had enough connections (`peerConnectionLimit`).
    public var peerLimitRefusals: UInt64 = 0
    /// Handshakes cut for others that wanted to begin (`handshakeCountLimit`, `peerHandshakeCountLimit`).
    public var crowdedOutHandshakes: UInt64 = 0
    /// Handshakes that took too long (`handshakeLimit`).
    public var handshakeTimeouts: UInt64 = 0
    /// Clients that the authorizer did not let in.
    public var notAdmitted: UInt64 = 0
    /// Exports that clients asked for and were not given: unknown, hidden or forbidden.
    public var refusedExports: UInt64 = 0
    /// Times that requests had to wait for the memory of the process (`memoryLimit`).
    public var memoryWaits: UInt64 = 0
    /// Connections cut for holding memory that others waited for (`stallLimit`).
    public var stalledConnections: UInt64 = 0
    /// Connections cut for hardly moving (`progressLimit`).
    public var slowConnections: UInt64 = 0
    /// Connections cut for breaking the protocol.
    public var violations: UInt64 = 0
    /// Times that the system refused a connection, for want of descriptors or memory.
    public var acceptFailures: UInt64 = 0
    /// Log lines left out for coming too fast.
    public var suppressedLines: UInt64 = 0

    mutating func count(_ violation: ProtocolViolation) {
        switch violation {
        case .handshakeTimeout: handshakeTimeouts += 1
        case .notAdmitted: notAdmitted += 1
        case .tooManyConnections: peerLimitRefusals += 1
        case .crowdedOut: crowdedOutHandshakes += 1
        case .stalled: stalledConnections += 1
        case .tooSlow: slowConnections += 1
        case .exportNameRefused: break  // counted when the name was looked up
        default: violations += 1
        }
    }
}
