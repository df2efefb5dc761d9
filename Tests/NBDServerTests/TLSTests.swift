import Block
import Glibc
import Logging
import NBDClient
import NBDProtocol
import NBDTLS
import Synchronization
import Testing

@testable import NBDServer

private let quiet = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })

/// Remembers whom it was asked about.
private final class Doorkeeper: Authorizer {
    let seen = Mutex<[PeerIdentity.TLS]>([])
    let admitted: @Sendable (PeerIdentity) -> Bool

    init(_ admitted: @escaping @Sendable (PeerIdentity) -> Bool) { self.admitted = admitted }

    func admits(_ peer: PeerIdentity) -> Bool {
        seen.withLock { $0.append(peer.tls) }
        return admitted(peer)
    }

    func permissions(of peer: PeerIdentity, for export: String) -> Permissions { .all }
}

/// Keeps what is logged from `notice` on.
private final class LogLines: LogHandler {
    let lines = Mutex<[String]>([])
    var all: [String] { lines.withLock { $0 } }
    var metadata: Logger.Metadata { get { [:] } set {} }
    var logLevel: Logger.Level { get { .notice } set {} }
    subscript(metadataKey key: String) -> Logger.Metadata.Value? { get { nil } set {} }

    func log(event: LogEvent) {
        let values = (event.metadata ?? [:]).sorted { $0.key < $1.key }.map { " \($0.key)=\($0.value)" }.joined()
        lines.withLock { $0.append("\(event.message)\(values)") }
    }
}

@Suite struct `A server with keys` {
    private static let keys = ["alice": [UInt8](repeating: 1, count: 32), "bob": [UInt8](repeating: 2, count: 32)]

    private func serve(
        _ policy: TLSPolicy = .required, authorizer: (any Authorizer)? = nil, _ exports: [Export]? = nil, _ body: (NBDURI) async throws -> Void
    ) async throws {
        var configuration = NBDServer.Configuration(listeners: [])
        configuration.tls = .init(credentials: TLSCredentialStore(TLSServerCredentials(preSharedKeys: { Self.keys[$0] })), policy: policy)
        configuration.authorizer = authorizer
        let exports = exports ?? [Export(name: "disk", device: MemoryDevice(byteCount: 1 << 20))]
        try await withNBDServer(exports: exports, configuration: configuration, logger: quiet) { uri in try await body(NBDURI(parsing: uri)) }
    }

    private func options(_ user: String, key: [UInt8]? = nil) throws -> NBDClient.Options {
        var options = NBDClient.Options()
        options.tls = try TLSClientCredentials(user: user, key: key ?? Self.keys[user] ?? [0])
        return options
    }

    // S-TLS-04, S-TLS-08: large transfers, and the name that was proved
    @Test func `serves who knows one, and tells who that is`() async throws {
        let doorkeeper = Doorkeeper { _ in true }
        try await serve(authorizer: doorkeeper) { uri in
            #expect(uri.requiresTLS)
            let client = try await NBDClient.connect(uri, options: options("alice"))
            let data = (0..<(1 << 20)).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 9) }
            try await client.write(at: 0, data)
            #expect(try await client.read(at: 0, count: 1 << 20) == data)
            try await client.disconnect()
        }
        #expect(doorkeeper.seen.withLock { $0 } == [.psk(user: "alice")])
    }

    // S-TLS-07
    @Test(arguments: ["alice", "mallory"]) func `turns away who does not`(user: String) async throws {
        try await serve { uri in
            await #expect(throws: NBDClientError.self) { try await NBDClient.connect(uri, options: options(user, key: [9])) }
        }
    }

    // S-TLS-07, S-TLS-08
    @Test func `turns away whom the rules do not let in`() async throws {
        try await serve(authorizer: Doorkeeper { $0.tlsName == "alice" }) { uri in
            _ = try await NBDClient.connect(uri, options: options("alice"))
            await #expect(throws: NBDClientError.self) { try await NBDClient.connect(uri, options: options("bob")) }
        }
    }

    // P-TLS-08: who may not come in without a name gets nothing in clear either, but may still encrypt
    @Test func `judges clients in clear when they ask for something`() async throws {
        try await serve(.optional, authorizer: Doorkeeper { $0.tlsName == "alice" }) { uri in
            #expect(!uri.requiresTLS)
            await #expect(throws: (any Error).self) { try await NBDClient.connect(uri) }
            _ = try await NBDClient.connect(uri, options: options("alice"))
        }
    }

    // S-TLS-07, S-CVE-20: the address and the user behind the socket are known before anything is said
    @Test(arguments: [TLSPolicy.required, .optional], [UInt32(0), 1])
    func `does not greet whom nothing that TLS proves could let in`(policy: TLSPolicy, difference: UInt32) async throws {
        var rule = AccessRule(.all)
        rule.uids = [getuid() + difference]
        rule.pskUser = Glob("alice")
        try await serve(policy, authorizer: AccessRules(allowed: [rule])) { uri in
            guard case .unix(let path) = uri.address else {
                Issue.record("not on a Unix socket")
                return
            }
            let isGreeted = difference == 0
            #expect(RawSocket(unix: path).receive(18).isEmpty != isGreeted)
            guard isGreeted else { return }
            _ = try await NBDClient.connect(uri, options: options("alice"))
            await #expect(throws: NBDClientError.self) { try await NBDClient.connect(uri, options: options("bob")) }
        }
    }

    // S-TLS-07: what TLS proves is judged when its handshake is over
    @Test func `does not keep whom the rules leave nothing`() async throws {
        var denial = AccessRule([.list, .read])
        denial.pskUser = Glob("bob")
        let lines = LogLines()
        var configuration = NBDServer.Configuration(listeners: [])
        configuration.tls = .init(credentials: TLSCredentialStore(TLSServerCredentials(preSharedKeys: { Self.keys[$0] })), policy: .required)
        configuration.authorizer = AccessRules(allowed: [AccessRule([.list, .read])], denied: [denial])
        let path = "/tmp/nbd-test-\(UInt64.random(in: .min ... .max)).sock"
        configuration.listeners = [Listener(.unix(path: path))]
        let server = try NBDServer(
            exports: [Export(name: "disk", device: MemoryDevice(byteCount: 1 << 20))], configuration: configuration,
            logger: Logger(label: "test", factory: { _ in lines }))
        try await server.whileServing {
            let uri = NBDURI(.unix(path: path))
            _ = try await NBDClient.open(uri, options: options("alice"))
            #expect(server.counters.notAdmitted == 0)
            await #expect(throws: (any Error).self) {
                let client = try await NBDClient.open(uri, options: options("bob"))
                _ = try await client.info("disk")
            }
            for _ in 0..<500 where server.counters.notAdmitted == 0 { try await Task.sleep(for: .milliseconds(10)) }
            #expect(server.counters.notAdmitted == 1)
            #expect(server.counters.refusedExports == 0)
        }
        let refusals = lines.all.filter { $0.contains("not let in") }
        #expect(refusals.count == 1)
        #expect(refusals.first?.contains("gid=\(getegid()) ") == true && refusals.first?.contains("pid=\(getpid())") == true, "\(refusals)")
        #expect(refusals.first?.contains("tls-user=bob uid=\(getuid())") == true, "\(refusals)")
    }

    // S-TLS-01
    @Test func `does not start with exports that nobody could reach`() {
        var export = Export(name: "disk", device: MemoryDevice(byteCount: 1 << 20))
        export.requiresTLS = true
        #expect(throws: ServerError.self) { try NBDServer(exports: [export], configuration: .init(listeners: []), logger: quiet) }
        var configuration = NBDServer.Configuration(listeners: [Listener(.unix(path: "/s"), oldstyleExport: "disk")])
        configuration.tls = .init(credentials: TLSCredentialStore(TLSServerCredentials(preSharedKeys: { _ in nil })), policy: .optional)
        #expect(throws: ServerError.self) { try NBDServer(exports: [export], configuration: configuration, logger: quiet) }
        export.requiresTLS = false
        configuration.tls?.policy = .required
        #expect(throws: ServerError.self) { try NBDServer(exports: [export], configuration: configuration, logger: quiet) }
    }
}
