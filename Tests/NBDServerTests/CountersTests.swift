import Block
import Glibc
import Logging
import NBDClient
import NBDProtocol
import Testing

@testable import NBDServer

private let quiet = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })

/// Lets nobody in.
private struct Nobody: Authorizer {
    func admits(_ peer: PeerIdentity) -> Bool { false }
    func permissions(of peer: PeerIdentity, for export: String) -> Permissions { [] }
}

/// Gives everybody a list of what they may not have.
private struct Nothing: Authorizer {
    func permissions(of peer: PeerIdentity, for export: String) -> Permissions { .list }
}

/// What each limit of docs/threat-model.md adds to, once it was reached.
@Suite(.serialized, .timeLimit(.minutes(1))) struct `The counters` {
    /// Serves a disk of 64 MiB on a Unix socket while `body` runs.
    private func serve(_ change: (inout NBDServer.Configuration) -> Void, _ body: (NBDServer, String) async throws -> Void) async throws {
        let path = "/tmp/nbd-test-\(UInt64.random(in: .min ... .max)).sock"
        var configuration = NBDServer.Configuration(listeners: [Listener(.unix(path: path))])
        configuration.drainLimit = .milliseconds(100)
        change(&configuration)
        let server = try NBDServer(
            exports: [Export(name: "disk", device: MemoryDevice(byteCount: 64 << 20))], configuration: configuration, logger: quiet)
        try await server.whileServing { try await body(server, path) }
    }

    /// Once it is `count`; the loops of the server tell it a moment after the client has seen the consequence.
    private func expect(
        _ count: UInt64, _ counter: KeyPath<Counters, UInt64>, of server: NBDServer, _ place: SourceLocation = #_sourceLocation
    ) async throws {
        for _ in 0..<500 where server.counters[keyPath: counter] != count { try await Task.sleep(for: .milliseconds(10)) }
        #expect(server.counters[keyPath: counter] == count, sourceLocation: place)
    }

    @Test func `know clients and sessions, and when all places were taken`() async throws {
        try await serve({ $0.connectionLimit = 2 }) { server, path in
            let one = RawSocket.transmission(unix: path, export: "disk")
            try await expect(1, \.connections, of: server)
            try await expect(1, \.sessions, of: server)
            #expect(server.counters.timesFull == 0)
            let other = RawSocket(unix: path)
            #expect(other.receive(18).count == 18)
            try await expect(2, \.connections, of: server)
            try await expect(1, \.timesFull, of: server)
            #expect(server.counters.sessions == 1)
            withExtendedLifetime((one, other)) {}
        }
    }

    // S-CVE-07
    @Test func `know who had too many connections, and whose handshake was cut`() async throws {
        try await serve({
            $0.peerConnectionLimit = 3
            $0.handshakeCountLimit = 2
        }) { server, path in
            let links = (0..<3).map { _ in
                let link = RawSocket(unix: path)
                #expect(link.receive(18).count == 18)
                return link
            }
            #expect(links[0].isClosedByServer())
            try await expect(1, \.crowdedOutHandshakes, of: server)
            // Its place is free a moment after it was closed.
            for _ in 0..<500 where server.connectionCount > 2 { try await Task.sleep(for: .milliseconds(10)) }
            let fourth = RawSocket(unix: path)
            #expect(fourth.receive(18).count == 18)
            try await expect(2, \.crowdedOutHandshakes, of: server)
            #expect(server.counters.peerLimitRefusals == 0)
        }
        try await serve({ $0.peerConnectionLimit = 1 }) { server, path in
            let first = RawSocket.transmission(unix: path, export: "disk")
            #expect(RawSocket(unix: path).receive(1).isEmpty)
            try await expect(1, \.peerLimitRefusals, of: server)
            withExtendedLifetime(first) {}
        }
    }

    // S-HS-11
    @Test func `know handshakes that took too long`() async throws {
        try await serve({ $0.handshakeLimit = .milliseconds(100) }) { server, path in
            #expect(RawSocket(unix: path).isClosedByServer())
            try await expect(1, \.handshakeTimeouts, of: server)
        }
    }

    // S-TLS-07, S-INFO-23
    @Test func `know whom the rules refused`() async throws {
        try await serve({ $0.authorizer = Nobody() }) { server, path in
            #expect(RawSocket(unix: path).receive(1).isEmpty)
            try await expect(1, \.notAdmitted, of: server)
        }
        try await serve({ $0.authorizer = Nothing() }) { server, path in
            let client = try await NBDClient.open(NBDURI(.unix(path: path)), options: NBDClient.Options())
            for name in ["disk", "absent"] { await #expect(throws: RefusedOption.self) { try await client.info(name) } }
            try await expect(2, \.refusedExports, of: server)
            try await client.disconnect()
        }
    }

    // S-CO-06, S-CO-07
    @Test func `know who waited for memory, who held it, and who hardly moved`() async throws {
        try await serve({
            $0.memoryLimit = 80 << 20
            $0.stallLimit = .milliseconds(300)
            $0.progressLimit = .zero
        }) { server, path in
            let hogs = (0..<2).map { _ in RawSocket.transmission(unix: path, export: "disk") }
            for hog in hogs { hog.send(RawSocket.request(1, length: 32 << 20) + [1]) }
            try await Task.sleep(for: .milliseconds(100))
            #expect(server.counters.memoryWaits == 0)
            let good = RawSocket.transmission(unix: path, export: "disk")
            good.send(RawSocket.request(0, length: 30 << 20))
            #expect(good.receive(16).count == 16)
            #expect(server.counters.memoryWaits == 1)
            #expect(server.counters.stalledConnections >= 1)
            #expect(server.counters.slowConnections == 0)
        }
        try await serve({
            $0.stallLimit = .milliseconds(100)
            $0.progressLimit = .milliseconds(300)
        }) { server, path in
            let slow = RawSocket.transmission(unix: path, export: "disk")
            slow.send(RawSocket.request(1, length: 1 << 20) + [1])
            #expect(slow.isClosedByServer())
            try await expect(1, \.slowConnections, of: server)
            #expect(server.counters.stalledConnections == 0)
        }
    }

    // S-BUG-27
    @Test func `know nonsense, and the lines that it did not get in the log`() async throws {
        try await serve({ _ in }) { server, path in
            for _ in 0..<30 {
                let socket = RawSocket(unix: path)
                socket.send([0xFF, 0xFF, 0xFF, 0xFF])
                #expect(socket.isClosedByServer())
            }
            try await expect(30, \.violations, of: server)
            #expect(server.counters.suppressedLines >= 10)
        }
    }
}
