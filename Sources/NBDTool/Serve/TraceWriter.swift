import FoundationEssentials
import NBDProtocol
import NBDServer

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Writes the trace points that a plan wants, one line each: seconds since 1970, connection, peer, event, values.
///
///     1732162496.104233 #3 192.0.2.7:40123 nbd_receive_request cookie=0x1 flags=0x0 type=0 (read) offset=0 length=512
///
/// A line is written before the conversation goes on: tracing to a slow place slows all clients down.
final class TraceWriter: Sendable {
    private let points: Set<TraceEvent.Point>
    private let descriptor: Int32
    private let isOwned: Bool

    /// - Throws: `.runtime` naming a file that cannot be written; lines are added at its end.
    init(_ plan: TracePlan) throws(ToolError) {
        points = plan.points
        if let path = plan.file {
            descriptor = HostProcess.open(path, O_WRONLY | O_CREAT | O_APPEND, mode: 0o644)
            guard descriptor >= 0 else { throw .runtime("cannot open trace file '\(path.sanitized())': \(HostProcess.text(of: errno))") }
            isOwned = true
        } else {
            descriptor = 2
            isOwned = false
        }
    }

    deinit {
        if isOwned { close(descriptor) }
    }

    func write(_ event: TraceEvent, _ connection: ConnectionIdentity) {
        guard points.contains(event.point) else { return }
        let line = Self.line(event, connection: connection.id, peer: connection.peer, time: Date().timeIntervalSince1970)
        HostProcess.write(Array((line + "\n").utf8), to: descriptor)
    }

    static func line(_ event: TraceEvent, connection: UInt64, peer: String, time: Double) -> String {
        let microseconds = UInt64((time * 1e6).rounded(.down))
        let fraction = String(microseconds % 1_000_000)
        let padding = String(repeating: "0", count: 6 - fraction.count)
        return
            "\(microseconds / 1_000_000).\(padding)\(fraction) #\(connection) \(peer.sanitized()) \(event.description.sanitized(limit: 1000))"
    }
}
