import Block
import Logging
import NBDClient
import NBDProtocol
import Synchronization
import Testing

@testable import NBDServer

/// A disk in memory that knows how many requests are inside of it, and how many came while none should.
private final class WatchedDisk: BlockDevice {
    let info: DeviceInfo
    private let memory = MemoryDevice(byteCount: 16 << 20)
    private let state = Mutex((inside: 0, isClosedToAll: false, trespasserCount: 0, requestCount: 0))

    init() { info = memory.info }

    var insideCount: Int { state.withLock { $0.inside } }
    var trespasserCount: Int { state.withLock { $0.trespasserCount } }
    var requestCount: Int { state.withLock { $0.requestCount } }
    func forbid(_ isForbidden: Bool) { state.withLock { $0.isClosedToAll = isForbidden } }

    private func enter() async {
        state.withLock { state in
            state.inside += 1
            state.requestCount += 1
            if state.isClosedToAll { state.trespasserCount += 1 }
        }
        try? await Task.sleep(for: .milliseconds(1))
    }

    private func leave() { state.withLock { $0.inside -= 1 } }

    func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        await enter()
        defer { leave() }
        try await memory.read(at: offset, into: &buffer)
    }

    func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        await enter()
        defer { leave() }
        try await memory.write(at: offset, from: bytes, options)
    }
}

private func withServer(_ device: any BlockDevice, fastPath: Bool, _ body: (NBDServer, String) async throws -> Void) async throws {
    let path = "/tmp/nbd-test-\(UInt64.random(in: .min ... .max)).sock"
    var configuration = NBDServer.Configuration(listeners: [Listener(.unix(path: path))])
    configuration.drainLimit = .seconds(2)
    configuration.usesFastPath = fastPath
    let server = try NBDServer(
        exports: [Export(name: "disk", device: device)], configuration: configuration,
        logger: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() }))
    defer { removeSocket(path) }
    try await server.whileServing { try await body(server, path) }
}

/// Writes and reads back in a part of the disk of its own until told to stop.
private func load(_ path: String, worker: Int, _ isOver: @escaping @Sendable () -> Bool) async throws -> Int {
    let client = try await NBDClient.connect(NBDURI(.unix(path: path), exportName: "disk"))
    var rounds = 0
    let start = UInt64(worker) << 20
    while !isOver() {
        try await withThrowingTaskGroup(of: Void.self) { group in
            for part in 0..<8 as Range<UInt64> {
                let byte = UInt8(truncatingIfNeeded: rounds &* 8 &+ Int(part) &+ worker)
                let count = [512, 4096, 60_000][Int(part) % 3]
                group.addTask {
                    let bytes = [UInt8](repeating: byte, count: count)
                    try await client.write(at: start + part * 65536, bytes)
                    let read = try await client.read(at: start + part * 65536, count: count)
                    #expect(read == bytes)
                }
            }
            try await group.waitForAll()
        }
        rounds += 1
    }
    try await client.disconnect()
    return rounds
}

@Suite(.serialized, .timeLimit(.minutes(2))) struct `Draining an export` {
    // S-DRN-01, S-DRN-02, S-DRN-04, S-DRN-05, S-BLK-17, S-EXP-17
    @Test(arguments: [true, false])
    func `leaves its device alone while clients are busy, and then lets them go on`(fastPath: Bool) async throws {
        let disk = WatchedDisk()
        try await withServer(disk, fastPath: fastPath) { server, path in
            let source = try #require(server.requestSource(ofExport: "disk"))
            let isOver = Mutex(false)
            let stop: @Sendable () -> Bool = { isOver.withLock { $0 } }
            let workers = (0..<4).map { worker in Task { try await load(path, worker: worker, stop) } }
            for _ in 0..<20 {
                try await Task.sleep(for: .milliseconds(10))
                await source.pause()
                #expect(disk.insideCount == 0)
                disk.forbid(true)
                try await Task.sleep(for: .milliseconds(5))
                await source.pause()  // they nest
                source.resume()
                disk.forbid(false)
                source.resume()
            }
            #expect(disk.trespasserCount == 0)
            let before = disk.requestCount
            while disk.requestCount == before { try await Task.sleep(for: .milliseconds(5)) }
            isOver.withLock { $0 = true }
            for worker in workers { #expect(try await worker.value > 0) }
        }
    }

    // S-DRN-03: a client that comes meanwhile waits like the others
    @Test(arguments: [true, false])
    func `holds clients that come meanwhile`(fastPath: Bool) async throws {
        let disk = WatchedDisk()
        try await withServer(disk, fastPath: fastPath) { server, path in
            let source = try #require(server.requestSource(ofExport: "disk"))
            await source.pause()
            let client = try await NBDClient.connect(NBDURI(.unix(path: path), exportName: "disk"))
            let reading = Task { try await client.read(at: 0, count: 512) }
            try await Task.sleep(for: .milliseconds(100))
            #expect(disk.requestCount == 0)
            source.resume()
            #expect(try await reading.value.count == 512)
            try await client.disconnect()
        }
        #expect(disk.requestCount > 0)
    }

    // S-DRN-07: neither a half-sent request nor a client that is gone holds anybody up
    @Test func `does not wait for clients`() async throws {
        let disk = WatchedDisk()
        try await withServer(disk, fastPath: true) { server, path in
            let source = try #require(server.requestSource(ofExport: "disk"))
            let socket = RawSocket.transmission(unix: path, export: "disk")
            socket.send(Array(RawSocket.request(1, cookie: 1, length: 4096).prefix(28)) + [1, 2, 3])
            try await Task.sleep(for: .milliseconds(50))
            await source.pause()
            #expect(disk.requestCount == 0)
            source.resume()
            #expect(server.requestSource(ofExport: "none") == nil)
        }
    }

    // S-REQ-03, S-BUG-11: a receiver that has read a part of a header keeps it. S-BUG-16: one whose client goes meanwhile is not touched again
    @Test(arguments: [true, false])
    func `keeps half a header, and forgets who leaves`(fastPath: Bool) async throws {
        let disk = WatchedDisk()
        try await withServer(disk, fastPath: fastPath) { server, path in
            let source = try #require(server.requestSource(ofExport: "disk"))
            let halfway = RawSocket.transmission(unix: path, export: "disk")
            let idle = RawSocket.transmission(unix: path, export: "disk")
            var leaving: RawSocket? = RawSocket.transmission(unix: path, export: "disk")
            let request = RawSocket.request(0, cookie: 7, length: 512)
            halfway.send(Array(request[..<13]))
            leaving?.send(Array(request[..<20]))
            while server.connectionCount < 3 { try await Task.sleep(for: .milliseconds(5)) }
            for _ in 0..<3 {
                await source.pause()
                leaving = nil
                source.resume()
            }
            while server.connectionCount > 2 { try await Task.sleep(for: .milliseconds(5)) }
            await source.pause()
            halfway.send(Array(request[13...]))
            idle.send(request)
            try await Task.sleep(for: .milliseconds(50))
            #expect(disk.requestCount == 0)
            source.resume()
            for socket in [halfway, idle] {
                let reply = socket.receive(16 + 512)
                #expect(reply.count == 528 && Array(reply[..<16]) == [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7])
            }
        }
    }

    // S-DRN-06, S-BLK-16
    @Test func `moves busy clients from loop to loop`() async throws {
        let disk = WatchedDisk()
        try await withServer(disk, fastPath: true) { server, path in
            guard server.loopCount > 1 else { return }
            let isOver = Mutex(false)
            let stop: @Sendable () -> Bool = { isOver.withLock { $0 } }
            let workers = (0..<4).map { worker in Task { try await load(path, worker: worker, stop) } }
            while server.connectionCount < 4 || disk.requestCount < 100 { try await Task.sleep(for: .milliseconds(5)) }
            _ = await server.move(export: "disk", toLoop: 0)
            #expect(await server.move(export: "disk", toLoop: 1) == 4)
            #expect(await server.move(export: "disk", toLoop: 1) == 0, "they are there already")
            for round in 0..<30 {
                #expect(await server.move(export: "disk", toLoop: round % 2) == 4)
                let before = disk.requestCount
                while disk.requestCount < before + 20 { try await Task.sleep(for: .milliseconds(1)) }
            }
            isOver.withLock { $0 = true }
            for worker in workers { #expect(try await worker.value > 0) }
            #expect(await server.move(export: "disk", toLoop: 99) == 0)
            #expect(await server.move(export: "none", toLoop: 0) == 0)
        }
    }

    // S-META-20, S-BST-11: what an export brings is offered, in order
    @Test func `shows an export's own contexts`() async throws {
        let device = MemoryDevice(byteCount: 1 << 20)
        let bitmap = try DirtyBitmap("b", byteCount: 1 << 20)
        bitmap.mark(ByteRange(ofDevice: 65536))
        let path = "/tmp/nbd-test-\(UInt64.random(in: .min ... .max)).sock"
        let export = Export(name: "disk", device: device, contexts: [.allocationDepth(of: device), .dirtyBitmap("b", bitmap)])
        let server = try NBDServer(
            exports: [export], configuration: NBDServer.Configuration(listeners: [Listener(.unix(path: path))]),
            logger: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() }))
        defer { removeSocket(path) }
        try await server.whileServing {
            let client = try await NBDClient.open(NBDURI(.unix(path: path), exportName: "disk"))
            let names = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b"]
            #expect(try await client.setMetaContexts("disk", queries: names).map(\.name) == names)
            _ = try await client.go("disk")
            let status = try await client.blockStatus(at: 0, count: 1 << 20)
            #expect(status["qemu:allocation-depth"]?.map { $0.flags } == [1])
            #expect(status["qemu:dirty-bitmap:b"]?.map { $0.flags } == [1, 0])
            try await client.disconnect()
        }
    }

    @Test(arguments: [["x"], ["a:b", "a:b"], ["base:allocation"], [":"].map { _ in String(repeating: "x", count: 5000) + ":" }])
    func `refuses impossible contexts`(names: [String]) throws {
        let device = MemoryDevice(byteCount: 1 << 20)
        let export = Export(
            name: "disk", device: device, contexts: names.map { ExportContext(name: $0, source: AllocationDepth(device)) })
        #expect(throws: ServerError.self) {
            try NBDServer(
                exports: [export], configuration: NBDServer.Configuration(listeners: []),
                logger: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() }))
        }
    }
}
