import Block
import Glibc
import Logging
import NBDClient
import NBDProtocol
import Synchronization
import Testing

@testable import NBDServer

/// Says what it was told to say, and remembers whom it was asked about.
private final class Rules: Authorizer {
    private let permissions: [String: Permissions]
    private let admitsAnybody: Bool
    let peers = Mutex<[PeerIdentity]>([])

    init(_ permissions: [String: Permissions], admitsAnybody: Bool = true) {
        self.permissions = permissions
        self.admitsAnybody = admitsAnybody
    }

    func admits(_ peer: PeerIdentity) -> Bool {
        peers.withLock { $0.append(peer) }
        return admitsAnybody
    }

    func permissions(of peer: PeerIdentity, for export: String) -> Permissions { permissions[export] ?? [] }
}

/// Counts what it is asked for.
private final class CountingDisk: BlockDevice {
    let info = DeviceInfo(byteCount: 1 << 20)
    let calls = Mutex(0)

    private func count() { calls.withLock { $0 += 1 } }

    func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) { count() }
    func flush() async throws(BlockError) { count() }
    func status(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        count()
        extents.append(range.count, .data)
    }
    func makeMapper() -> (any RangeMapper)? {
        count()
        return nil
    }
}

private func serve(
    _ rules: Rules, _ change: (inout NBDServer.Configuration) -> Void = { _ in }, _ body: (String, NBDServer) async throws -> Void
) async throws {
    let path = "/tmp/nbd-test-\(UInt64.random(in: .min ... .max)).sock"
    var configuration = NBDServer.Configuration(listeners: [Listener(.unix(path: path))])
    configuration.authorizer = rules
    configuration.defaultExport = "disk"
    change(&configuration)
    let names = ["disk", "shown", "secret", "quiet"]
    let server = try NBDServer(
        exports: names.map { Export(name: $0, device: MemoryDevice(byteCount: 1 << 20)) }, configuration: configuration,
        logger: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() }))
    try await server.whileServing { try await body(path, server) }
}

private func connect(_ path: String, _ export: String = "disk") async throws -> NBDClient {
    try await NBDClient.connect(NBDURI(.unix(path: path), exportName: export).description, options: NBDClient.Options())
}

@Suite(.serialized, .timeLimit(.minutes(1))) struct `Authorisation` {
    private let rules: [String: Permissions] = ["disk": .all, "shown": .list, "secret": [], "quiet": [.read]]

    // S-CVE-20: a stranger costs the disk nothing, and has it do nothing
    @Test func `asks a device for nothing before its export is chosen by somebody who may`() async throws {
        let disk = CountingDisk()
        let path = "/tmp/nbd-test-\(UInt64.random(in: .min ... .max)).sock"
        var configuration = NBDServer.Configuration(listeners: [Listener(.unix(path: path))])
        configuration.authorizer = Rules(["shown": .list, "disk": [.list, .read]])
        let server = try NBDServer(
            exports: ["disk", "shown", "secret"].map { Export(name: $0, device: disk) }, configuration: configuration,
            logger: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() }))
        try await server.start()
        let client = try await NBDClient.open(NBDURI(.unix(path: path)), options: NBDClient.Options())
        _ = try await client.listExports()
        _ = try await client.info("disk")
        _ = try await client.listMetaContexts("disk")
        for name in ["shown", "secret", "absent"] { await #expect(throws: RefusedOption.self) { try await client.info(name) } }
        #expect(disk.calls.withLock { $0 } == 0)
        try await client.disconnect()
        let reader = try await connect(path)
        _ = try await reader.read(at: 0, count: 1)
        #expect(disk.calls.withLock { $0 } > 0)
        try await reader.disconnect()
        server.shutdown()
        try await server.run()
    }

    // S-INFO-23
    @Test func `shows in LIST what may be listed, and nothing else`() async throws {
        try await serve(Rules(rules)) { path, _ in
            let client = try await NBDClient.open(NBDURI(.unix(path: path)), options: NBDClient.Options())
            #expect(try await client.listExports().map(\.name) == ["disk", "shown"])
            try await client.disconnect()
        }
    }

    @Test func `makes no difference between an export that is hidden and one that is not there`() async throws {
        try await serve(Rules(rules)) { path, _ in
            let client = try await NBDClient.open(NBDURI(.unix(path: path)), options: NBDClient.Options())
            for name in ["secret", "absent"] {
                let refusal = await #expect(throws: RefusedOption.self) { try await client.info(name) }
                #expect(refusal?.reply == .unknown)
                #expect(refusal?.text == "export '\(name)' is not here")
                let contexts = await #expect(throws: RefusedOption.self) { try await client.listMetaContexts(name) }
                #expect(contexts?.reply == .unknown)
            }
            let forbidden = await #expect(throws: RefusedOption.self) { try await client.info("shown") }
            #expect(forbidden?.reply == .policy)
            #expect(try await client.info("quiet").byteCount == 1 << 20)
            try await client.disconnect()
        }
    }

    @Test(arguments: ["secret", "shown", "absent"]) func `drops an EXPORT_NAME that it refuses`(name: String) async throws {
        try await serve(Rules(rules)) { path, _ in
            let socket = RawSocket(unix: path)
            _ = socket.receive(18)
            socket.send([0, 0, 0, 3] + Array("IHAVEOPT".utf8) + [0, 0, 0, 1, 0, 0, 0, UInt8(name.utf8.count)] + Array(name.utf8))
            #expect(socket.receive(10).isEmpty)
        }
    }

    @Test func `holds for the default export by its own name`() async throws {
        try await serve(Rules(["": .all, "disk": [.read]])) { path, _ in
            let client = try await connect(path, "")
            #expect(try await client.session?.info.flags.contains(.readOnly) == true)
            try await client.disconnect()
        }
        try await serve(Rules(["": .all])) { path, _ in
            await #expect(throws: (any Error).self) { try await connect(path, "") }
        }
    }

    @Test func `lets a reader read, and refuses every kind of write`() async throws {
        try await serve(Rules(["disk": [.read, .contexts]])) { path, _ in
            let client = try await connect(path)
            let flags = try #require(try await client.session?.info.flags)
            #expect(flags.contains(.readOnly))
            #expect(flags.isDisjoint(with: [.trim, .writeZeroes, .fastZero]))
            #expect(try await client.read(at: 0, count: 4) == [0, 0, 0, 0])
            try await client.disconnect()
            let socket = RawSocket.transmission(unix: path, export: "disk")
            for (type, payload) in [(1, 16), (4, 0), (6, 0)] as [(UInt16, Int)] {
                socket.send(RawSocket.request(type, length: 16) + [UInt8](repeating: 7, count: payload))
                #expect(Array(socket.receive(16)[4..<8]) == [0, 0, 0, 1], "command \(type)")
            }
            #expect(try await connect(path).read(at: 0, count: 16) == [UInt8](repeating: 0, count: 16))
        }
    }

    @Test func `takes TRIM and WRITE_ZEROES from a writer who may not`() async throws {
        try await serve(Rules(["disk": [.read, .write]])) { path, _ in
            let client = try await connect(path)
            let flags = try #require(try await client.session?.info.flags)
            #expect(flags.isDisjoint(with: [.readOnly, .trim, .writeZeroes, .fastZero]))
            try await client.write(at: 0, [1, 2, 3, 4])
            try await client.disconnect()
            let socket = RawSocket.transmission(unix: path, export: "disk")
            for type in [4, 6] as [UInt16] {
                socket.send(RawSocket.request(type, length: 4))
                #expect(Array(socket.receive(16)[4..<8]) == [0, 0, 0, 1], "command \(type)")
            }
            #expect(try await connect(path).read(at: 0, count: 4) == [1, 2, 3, 4])
        }
    }

    @Test func `hides metadata contexts`() async throws {
        try await serve(Rules(["disk": [.read, .write, .trim]])) { path, _ in
            let client = try await NBDClient.open(NBDURI(.unix(path: path)), options: NBDClient.Options())
            #expect(try await client.listMetaContexts("disk").isEmpty)
            try await client.disconnect()
        }
    }

    @Test func `cuts off whom it does not let in, without a word`() async throws {
        let rules = Rules(["disk": .all], admitsAnybody: false)
        try await serve(rules) { path, _ in
            let socket = RawSocket(unix: path)
            #expect(socket.receive(1).isEmpty)
            #expect(socket.isClosedByServer())
        }
    }

    @Test func `knows who is at the other end of a Unix socket`() async throws {
        let rules = Rules(["disk": .all])
        try await serve(rules) { path, _ in try await connect(path).disconnect() }
        let peer = try #require(rules.peers.withLock { $0 }.first)
        #expect(peer == PeerIdentity(address: .unix, unix: .init(uid: getuid(), gid: getgid(), pid: getpid())))
    }

    @Test(arguments: [("127.0.0.1", "127.0.0.1", "127.0.0.1"), ("::1", "[::1]", "::1"), ("::", "127.0.0.1", "127.0.0.1")])
    func `knows the address of a TCP client, and IPv4 in the clothes of IPv6`(host: String, dialled: String, address: String) async throws {
        let rules = Rules(["disk": .all])
        try await serve(rules, { $0.listeners = [Listener(.tcp(host: host, port: 0))] }) { _, server in
            let port = try #require(server.uris[0].split(separator: ":").last?.split(separator: "/").first)
            let client = try await NBDClient.connect("nbd://\(dialled):\(port)/disk", options: NBDClient.Options())
            try await client.disconnect()
        }
        #expect(rules.peers.withLock { $0 } == [PeerIdentity(address: .ip(try #require(IPAddress(address))))])
    }
}
