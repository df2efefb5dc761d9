import Block
import Glibc
import Logging
import NBDClient
import NBDProtocol
import NIOCore
import Synchronization
import Testing

@testable import NBDServer

/// A server on a private socket with one exported disk of a megabyte.
private func withServer(
    _ exports: [Export]? = nil, _ change: (inout NBDServer.Configuration) -> Void = { _ in }, logger: Logger = quiet,
    _ body: (NBDServer, String) async throws -> Void
) async throws {
    let path = "/tmp/nbd-test-\(UInt64.random(in: .min ... .max)).sock"
    var configuration = NBDServer.Configuration(listeners: [Listener(.unix(path: path))])
    configuration.drainLimit = .seconds(2)
    change(&configuration)
    let server = try NBDServer(
        exports: exports ?? [Export(name: "disk", description: "a disk", device: MemoryDevice(byteCount: 1 << 20))],
        configuration: configuration, logger: logger)
    defer { removeSocket(path) }
    try await server.whileServing { try await body(server, path) }
}

private let quiet = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })

/// A disk of chosen sizes.
private final class SizedDisk: BlockDevice {
    let info: DeviceInfo
    init(byteCount: UInt64, blockSize: BlockSize) { info = DeviceInfo(byteCount: byteCount, blockSize: blockSize) }
    func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) { buffer.fillWithZeroes() }
}

/// A disk whose reads wait until they are let go.
private actor SlowDisk: BlockDevice {
    nonisolated let info = DeviceInfo(byteCount: 64 << 20, abilities: .allNative)
    private var isOpen = false
    private var waiting: [CheckedContinuation<Void, Never>] = []
    private(set) var readCount = 0
    private(set) var flushCount = 0
    private(set) var isClosed = false

    func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        readCount += 1
        if !isOpen { await withCheckedContinuation { waiting.append($0) } }
    }

    func flush() async throws(BlockError) { flushCount += 1 }
    func close() async { isClosed = true }

    func open() {
        isOpen = true
        for continuation in waiting { continuation.resume() }
        waiting = []
    }

    func waitForReads(_ count: Int) async {
        while readCount < count { try? await Task.sleep(for: .milliseconds(5)) }
    }
}

@Suite(.serialized) struct `A server` {
    // S-EXP-08, S-EXP-09, S-EXP-10, P-FLG-01, P-FLG-03, P-FLG-07, P-FLG-09, P-MC-01, P-MC-03, P-FLG-05
    @Test func `tells what its device can do`() async throws {
        func flags(_ device: any BlockDevice, isReadOnly: Bool = false, limit: Int = 100) async throws -> TransmissionFlags {
            let found = Mutex(TransmissionFlags())
            try await withServer([Export(name: "", device: device, isReadOnly: isReadOnly)], { $0.connectionLimit = limit }) { server, _ in
                let client = try await NBDClient.connect(server.uris[0], options: NBDClient.Options())
                let session = try await client.session
                found.withLock { $0 = session?.info.flags ?? [] }
                try await client.disconnect()
            }
            return found.withLock { $0 }
        }
        let disk = SlowDisk()
        #expect(try await flags(disk).rawValue & ~0x80 == 0x0D6D)
        #expect(try await flags(disk, isReadOnly: true).rawValue & ~0x80 == 0x050F)
        #expect(try await flags(disk, limit: 1).contains(.multiConn) == false)
        #expect(try await flags(MemoryDevice(byteCount: 512)).contains(.rotational) == false)
    }

    // S-EXP-06, S-BUG-13, P-SIZE-04, S-LIM-14
    @Test(arguments: [0, 1, 1000, 4095] as [UInt64])
    func `exports exact sizes`(size: UInt64) async throws {
        try await withServer([Export(name: "odd", device: MemoryDevice(byteCount: size))]) { server, _ in
            let client = try await NBDClient.connect(server.uris[0], options: NBDClient.Options())
            #expect(try await client.session?.info.byteCount == size)
            if size > 0 {
                try await client.write(at: size - 1, [0x77])
                #expect(try await client.read(at: size - 1, count: 1) == [0x77])
            }
            try await client.disconnect()
        }
    }

    // S-BLK-04, S-BLK-05, S-EXP-06: a size that is no whole number of blocks is not promised either
    @Test(
        arguments: [(1, 4096, 64 << 20, 32 << 20), (512, 65536, 1 << 20, 1 << 20), (4096, 1 << 25, 1 << 26, 1 << 25)]
            as [(UInt32, UInt32, UInt32, UInt32)])
    func `tells the block sizes of its devices`(minimum: UInt32, preferred: UInt32, maximum: UInt32, told: UInt32) throws {
        let device = SizedDisk(byteCount: 1_000_001, blockSize: BlockSize(minimum: minimum, preferred: preferred, maximum: maximum))
        let served = try ServedExport(Export(name: "disk", device: device), id: 1, allowsSeveralClients: true)
        #expect(served.description.blockSizes == BlockSizes(minimum: minimum, preferred: preferred, maximumPayload: told))
        #expect(served.description.byteCount == 1_000_001 / UInt64(minimum) * UInt64(minimum))
        #expect(served.device.info.byteCount == served.description.byteCount)
    }

    // S-EXP-03, S-EXP-05, S-BUG-08, S-LIST-05, P-GEN-01
    @Test func `refuses exports that could not be told apart or told at all`() async throws {
        let device = MemoryDevice(byteCount: 512)
        func start(_ exports: [Export], default name: String? = nil) throws {
            var configuration = NBDServer.Configuration(listeners: [])
            configuration.defaultExport = name
            _ = try NBDServer(exports: exports, configuration: configuration, logger: quiet)
        }
        #expect(throws: ServerError.self) { try start([Export(name: "a", device: device), Export(name: "a", device: device)]) }
        #expect(throws: ServerError.self) { try start([Export(name: "a\0b", device: device)]) }
        #expect(throws: ServerError.self) { try start([Export(name: String(repeating: "x", count: 4097), device: device)]) }
        #expect(throws: ServerError.self) { try start([Export(name: "a", description: "\0", device: device)]) }
        #expect(throws: ServerError.self) { try start([Export(name: "a", device: device)], default: "b") }
        try start([Export(name: "a", device: device), Export(name: "b", device: device)], default: "b")
    }

    // S-EXPN-04, P-OPT-03, S-INFO-08
    @Test func `gives its default export to those who ask for none`() async throws {
        let exports = [Export(name: "a", device: MemoryDevice(byteCount: 512)), Export(name: "b", device: MemoryDevice(byteCount: 1024))]
        try await withServer(exports, { $0.defaultExport = "b" }) { server, path in
            let client = try await NBDClient.connect(NBDURI(.unix(path: path)).description, options: NBDClient.Options())
            #expect(try await client.session?.info.byteCount == 1024)
            try await client.disconnect()
        }
    }

    // S-SRV-02, S-SRV-03, S-EXP-01
    @Test func `listens on several addresses at once, and prints where`() async throws {
        try await withServer(nil, { $0.listeners += [Listener(.tcp(host: "127.0.0.1", port: 0)), Listener(.tcp(host: "::1", port: 0))] }) {
            server, _ in
            #expect(server.uris.count == 3)
            #expect(Set(server.uris.dropFirst().compactMap { try? NBDURI(parsing: $0).port }).count == 1, "one free port for both")
            for uri in server.uris {
                let client = try await NBDClient.connect(uri, options: NBDClient.Options())
                #expect(try await client.read(at: 0, count: 4) == [0, 0, 0, 0])
                try await client.disconnect()
            }
        }
    }

    // S-CLI-11, S-NEW-10, P-GEN-02
    @Test func `sends without delay and looks after silent TCP peers`() async throws {
        let seen = Mutex<[String: CInt]>([:])
        try await withServer(nil, { $0.listeners = [Listener(.tcp(host: "127.0.0.1", port: 0))] }) { server, _ in
            let client = try await NBDClient.connect(server.uris[0], options: NBDClient.Options())
            _ = try await client.read(at: 0, count: 1)
            // The server's end is a socket of this process, too: the one whose own port is the server's, and which has a peer.
            for descriptor in CInt(3)..<1024 where isConnected(descriptor, localPort: port(of: server)) {
                let options = [
                    "nodelay": option(descriptor, CInt(IPPROTO_TCP), TCP_NODELAY), "keepalive": option(descriptor, SOL_SOCKET, SO_KEEPALIVE),
                    "timeout": option(descriptor, CInt(IPPROTO_TCP), TCP_USER_TIMEOUT),
                ]
                seen.withLock { $0 = options }
            }
            try await client.disconnect()
        }
        #expect(seen.withLock { $0 } == ["nodelay": 1, "keepalive": 1, "timeout": 120_000])
    }

    // S-SRV-02: the error names the address
    @Test func `that cannot listen says where and why, and leaves nothing open`() async throws {
        try await withServer(nil, { $0.listeners = [Listener(.tcp(host: "127.0.0.1", port: 0))] }) { server, _ in
            let port = try #require(server.uris[0].split(separator: ":").last?.split(separator: "/").first.flatMap { Int($0) })
            let second = try NBDServer(
                exports: [], configuration: .init(listeners: [Listener(.tcp(host: "127.0.0.1", port: port))]), logger: quiet)
            let error = await #expect(throws: ServerError.self) { try await second.start() }
            #expect(error?.kind == .cannotListen)
            #expect(error?.description.contains("127.0.0.1:\(port)") == true)
            #expect(error?.description.contains("in use") == true)
        }
    }

    // S-LIST-06
    @Test func `may keep its list to itself`() async throws {
        try await withServer(nil, { $0.listeners[0].isListable = false }) { server, path in
            let client = try await NBDClient.open(NBDURI(.unix(path: path)), options: NBDClient.Options())
            await #expect(throws: RefusedOption.self) { try await client.listExports() }
            await client.close()
        }
    }

    // S-HS-04, P-HS-13
    @Test func `speaks oldstyle on a listener that asks for it`() async throws {
        try await withServer(nil, { $0.listeners[0].oldstyleExport = "disk" }) { _, path in
            let socket = RawSocket(unix: path)
            let greeting = socket.receive(152)
            #expect(greeting.count == 152)
            #expect(Array(greeting[16..<24]) == [0, 0, 0, 0, 0, 16, 0, 0])
            socket.send(RawSocket.request(0, cookie: 9, offset: 0, length: 4))
            #expect(socket.receive(20).count == 20)
        }
    }

    // S-SRV-07, S-CLI-05
    @Test(.timeLimit(.minutes(1)))
    func `may end with its last client, but not with one that chose nothing`() async throws {
        let path = "/tmp/nbd-test-\(UInt64.random(in: .min ... .max)).sock"
        defer { removeSocket(path) }
        var configuration = NBDServer.Configuration(listeners: [Listener(.unix(path: path))])
        configuration.stopsAfterLastClient = true
        let server = try NBDServer(
            exports: [Export(name: "disk", device: MemoryDevice(byteCount: 512))], configuration: configuration, logger: quiet)
        try await server.start()
        let serving = Task { try await server.run() }
        let shy = try await NBDClient.open(NBDURI(.unix(path: path)), options: NBDClient.Options())
        _ = try await shy.listExports()
        await shy.close()
        let client = try await NBDClient.connect(server.uris[0], options: NBDClient.Options())
        _ = try await client.read(at: 0, count: 1)
        try await client.disconnect()
        try await serving.value
    }

    // S-EXP-26, S-SRV-05: the end flushes and closes devices
    @Test func `flushes and closes its devices at the end`() async throws {
        let disk = SlowDisk()
        try await withServer([Export(name: "", device: disk)]) { _, _ in }
        #expect(await disk.flushCount == 1)
        #expect(await disk.isClosed)
    }

    @Test func `lends itself to other people's tests`() async throws {
        let size = try await withNBDServer(exports: [Export(name: "x y", device: MemoryDevice(byteCount: 4096))]) { uri in
            let client = try await NBDClient.connect(uri, options: NBDClient.Options())
            defer { Task { await client.close() } }
            return try await client.session?.info.byteCount
        }
        #expect(size == 4096)
    }
}

@Suite(.serialized, .timeLimit(.minutes(1))) struct `Strangers` {
    // S-HS-11, S-CVE-07, P-HS-14, S-NEW-06, S-BUG-18
    @Test func `who do not finish the handshake are dropped in time`() async throws {
        try await withServer(nil, { $0.handshakeLimit = .milliseconds(300) }) { server, path in
            let silent = RawSocket(unix: path)
            let halting = RawSocket(unix: path)
            halting.send([0, 0, 0, 3] + Array("IHAVEO".utf8))
            #expect(silent.isClosedByServer())
            #expect(halting.isClosedByServer())
            let good = RawSocket.transmission(unix: path, export: "disk")
            try await Task.sleep(for: .milliseconds(600))
            good.send(RawSocket.request(3))
            #expect(good.receive(16).count == 16, "in transmission there is no such limit (S-CLI-12)")
        }
    }

    // S-SRV-04, S-LIM-13, S-NEW-07
    @Test func `beyond the connection limit wait until somebody leaves`() async throws {
        try await withServer(nil, { $0.connectionLimit = 2 }) { server, path in
            var places: [RawSocket] = [RawSocket(unix: path), RawSocket(unix: path)]
            for place in places { #expect(place.receive(18).count == 18) }
            let waiting = RawSocket(unix: path)
            try await Task.sleep(for: .milliseconds(200))
            #expect(server.connectionCount == 2)
            places.removeLast()
            #expect(waiting.receive(18).count == 18)
        }
    }

    // S-CO-06, P-GEN-07: one does not delay the other
    @Test func `who never read and who stop in the middle do not delay a good client`() async throws {
        try await withServer([Export(name: "disk", device: MemoryDevice(byteCount: 64 << 20))]) { server, path in
            let deaf = RawSocket.transmission(unix: path, export: "disk")
            for _ in 0..<200 where deaf.sendNow(RawSocket.request(0, length: 1 << 20)) <= 0 { break }
            let stopped = RawSocket.transmission(unix: path, export: "disk")
            stopped.send(RawSocket.request(1, length: 32 << 20) + [1, 2, 3])
            let client = try await NBDClient.connect(server.uris[0], options: NBDClient.Options())
            let start = ContinuousClock.now
            for index in 0..<200 as Range<UInt64> {
                try await client.write(at: index * 4096, [UInt8](repeating: UInt8(index), count: 4096))
                #expect(try await client.read(at: index * 4096, count: 1) == [UInt8(index)])
            }
            #expect(ContinuousClock.now - start < .seconds(20))
            try await client.disconnect()
        }
    }

    // S-CO-07: memory held by one who does not move is taken back when others wait for it
    @Test func `who hold memory without moving are closed when others need it`() async throws {
        try await withServer(
            [Export(name: "disk", device: MemoryDevice(byteCount: 64 << 20))],
            {
                $0.memoryLimit = 80 << 20
                $0.stallLimit = .milliseconds(300)
            }
        ) { server, path in
            let hogs = (0..<2).map { _ in RawSocket.transmission(unix: path, export: "disk") }
            for hog in hogs { hog.send(RawSocket.request(1, length: 32 << 20) + [1]) }
            try await Task.sleep(for: .milliseconds(100))
            let good = RawSocket.transmission(unix: path, export: "disk")
            good.send(RawSocket.request(0, length: 30 << 20))
            #expect(good.receive(16 + 30 << 20).count > 16)
            #expect(hogs.contains { $0.isClosedByServer() })
        }
    }

    // S-OPT-02, S-REQ-04, S-HS-10, P-HS-12, P-TERM-03
    @Test func `who talk nonsense are closed, one by one`() async throws {
        try await withServer { server, path in
            for nonsense in [Array("GET / HTTP/1.0\r\n\r\n".utf8), [0, 0, 0, 3] + Array("nonsense".utf8), [0xFF, 0xFF, 0xFF, 0xFF]] {
                let socket = RawSocket(unix: path)
                socket.send(nonsense)
                #expect(socket.isClosedByServer())
            }
            let socket = RawSocket.transmission(unix: path, export: "disk")
            socket.send([UInt8](repeating: 0x5A, count: 28))
            #expect(socket.isClosedByServer())
            let client = try await NBDClient.connect(server.uris[0], options: NBDClient.Options())
            try await client.disconnect()
        }
    }

    // S-BUG-27, S-REP-12
    @Test func `cannot fill the log`() async throws {
        let lines = Mutex(0)
        let count = LineCounter()
        let logger = Logger(label: "test", factory: { _ in count })
        try await withServer(nil, logger: logger) { _, path in
            for _ in 0..<100 {
                let socket = RawSocket(unix: path)
                socket.send([0xFF, 0xFF, 0xFF, 0xFF])
                _ = socket.isClosedByServer()
            }
        }
        lines.withLock { $0 = count.count.withLock { $0 } }
        #expect((1...20).contains(lines.withLock { $0 }))
    }

    // S-HS-01, S-OPT-12: every byte on its own
    @Test func `may send one byte at a time`() async throws {
        try await withServer { _, path in
            let socket = RawSocket(unix: path)
            #expect(socket.receive(18).count == 18)
            for byte in [0, 0, 0, 3] + Array("IHAVEOPT".utf8) + [0, 0, 0, 1, 0, 0, 0, 4] + Array("disk".utf8) { socket.send([byte]) }
            #expect(socket.receive(10).count == 10)
            for byte in RawSocket.request(1, offset: 5, length: 3) + [7, 8, 9] { socket.send([byte]) }
            #expect(socket.receive(16).count == 16)
            for byte in RawSocket.request(0, offset: 5, length: 3) { socket.send([byte]) }
            #expect(socket.receive(19).suffix(3) == [7, 8, 9])
        }
    }
}

private final class LineCounter: LogHandler, Sendable {
    let count = Mutex(0)
    var logLevel: Logger.Level {
        get { .notice }
        set {}
    }
    var metadata: Logger.Metadata {
        get { [:] }
        set {}
    }
    subscript(metadataKey _: String) -> Logger.Metadata.Value? {
        get { nil }
        set {}
    }
    func log(event: LogEvent) { count.withLock { $0 += 1 } }
}

@Suite(.serialized, .timeLimit(.minutes(1))) struct `Endings` {
    // P-TERM-04, P-TERM-05, S-SRV-08, S-EXP-22
    @Test func `requests in flight are finished, later ones get ESHUTDOWN`() async throws {
        let disk = SlowDisk()
        try await withServer([Export(name: "disk", device: disk)], { $0.drainLimit = .seconds(10) }) { server, path in
            let socket = RawSocket.transmission(unix: path, export: "disk")
            socket.send(RawSocket.request(0, cookie: 1, length: 4))
            await disk.waitForReads(1)
            server.shutdown()
            try await Task.sleep(for: .milliseconds(100))
            socket.send(RawSocket.request(0, cookie: 2, length: 4))
            #expect(socket.receive(16) == [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 108, 0, 0, 0, 0, 0, 0, 0, 2])
            await disk.open()
            #expect(socket.receive(20) == [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0])
            #expect(socket.isClosedByServer())
        }
    }

    // S-CLI-07, S-CLI-09, S-NEW-08, S-BUG-18
    @Test func `the deadline ends it, with clients in every state`() async throws {
        let disk = SlowDisk()
        let start = Mutex(ContinuousClock.now)
        let sockets = Mutex<[RawSocket]>([])
        try await withServer([Export(name: "disk", device: disk)], { $0.drainLimit = .milliseconds(500) }) { server, path in
            let silent = RawSocket(unix: path)
            let halfOption = RawSocket(unix: path)
            halfOption.send([0, 0, 0, 3] + Array("IHAVEOPT".utf8))
            let halfPayload = RawSocket.transmission(unix: path, export: "disk")
            halfPayload.send(RawSocket.request(1, length: 1000) + [1])
            let busy = RawSocket.transmission(unix: path, export: "disk")
            busy.send(RawSocket.request(0, length: 4))
            await disk.waitForReads(1)
            sockets.withLock { $0 = [silent, halfOption, halfPayload, busy] }
            start.withLock { $0 = .now }
        }
        #expect(ContinuousClock.now - start.withLock { $0 } < .seconds(5))
        for socket in sockets.withLock({ $0 }) { #expect(socket.isClosedByServer()) }
        await disk.open()
    }

    // P-CMD-DISC-1, S-BUG-21, S-CMD-30, S-REQ-02
    @Test(arguments: [true, false])
    func `DISC and a closed write side still get the replies in flight`(byDisconnect: Bool) async throws {
        let disk = SlowDisk()
        try await withServer([Export(name: "disk", device: disk)]) { server, path in
            let socket = RawSocket.transmission(unix: path, export: "disk")
            socket.send(RawSocket.request(0, cookie: 5, length: 4))
            if byDisconnect { socket.send(RawSocket.request(2)) } else { socket.finishSending() }
            await disk.waitForReads(1)
            try await Task.sleep(for: .milliseconds(50))
            await disk.open()
            #expect(socket.receive(20).count == 20)
            #expect(socket.isClosedByServer())
        }
    }

    // S-CLI-04, S-HS-07, S-HS-08: clients that vanish
    @Test func `clients that vanish at any point leave nothing behind`() async throws {
        try await withServer { server, path in
            let whole =
                [0, 0, 0, 3] + Array("IHAVEOPT".utf8) + [0, 0, 0, 1, 0, 0, 0, 4] + Array("disk".utf8) + RawSocket.request(0, length: 4096)
            for count in 0...whole.count { RawSocket(unix: path).send(Array(whole.prefix(count))) }
            for _ in 0..<200 where server.connectionCount > 0 { try await Task.sleep(for: .milliseconds(10)) }
            #expect(server.connectionCount == 0)
        }
    }
}

extension NBDURI {
    fileprivate var port: UInt16? { if case .tcp(_, let port) = address { port } else { nil } }
}

private func port(of server: NBDServer) -> UInt16 {
    server.uris.first?.split(separator: ":").last?.split(separator: "/").first.flatMap { UInt16($0) } ?? 0
}

private func isConnected(_ descriptor: CInt, localPort: UInt16) -> Bool {
    func port(_ call: (CInt, UnsafeMutablePointer<sockaddr>, UnsafeMutablePointer<socklen_t>) -> CInt) -> UInt16? {
        var address = sockaddr_in()
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let result = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { call(descriptor, $0, &length) }
        }
        return result == 0 && CInt(address.sin_family) == AF_INET ? UInt16(bigEndian: address.sin_port) : nil
    }
    return port(getsockname) == localPort && port(getpeername) != nil
}

private func option(_ descriptor: CInt, _ level: CInt, _ name: CInt) -> CInt {
    var value: CInt = -1
    var length = socklen_t(MemoryLayout<CInt>.size)
    _ = getsockopt(descriptor, level, name, &value, &length)
    return value
}
