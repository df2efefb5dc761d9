import Block
import HostIO
import NBDProtocol
import NIOCore
import Testing

@testable import NBDEngine

/// The second way through the engine: one buffer for all connections of a loop, replies shown and dropped, data sent from where it lies.
@Suite struct `A shell that shares its buffer` {
    private static func conversation(_ harness: EngineHarness) -> [UInt8] {
        harness.bytes(harness.header(.write, 512, 20_000), (0..<20_000).map { UInt8(truncatingIfNeeded: $0 / 7) })
            + harness.bytes(harness.header(.read, 500, 30_000))
            + harness.bytes(harness.header(.write, 1 << 30, 300), [UInt8](repeating: 1, count: 300))
            + harness.bytes(harness.header(.read, 0, 5000))
            + harness.bytes(harness.header(.blockStatus, 0, 4096))
            + harness.bytes(harness.header(.flush))
            + harness.bytes(harness.header(.disconnect))
    }

    // S-REQ-01, S-REQ-10: whatever comes with one call, and whatever leaves with one
    @Test(arguments: [ReplyMode.simple, .structured, .extended])
    func `gets the same replies as one that does not`(mode: ReplyMode) async {
        let plain = EngineHarness(mode, device: ScriptedDevice(byteCount: 1 << 16))
        plain.feed(Self.conversation(plain))
        await plain.finish()
        for (pieces, sends) in [(Int.max, Int.max), (13, 1000), (27, 99), (4096, 777), (16_384, 65_536), (19_000, 40)] {
            let harness = EngineHarness(mode, device: ScriptedDevice(byteCount: 1 << 16), isSharing: true)
            harness.sendLimit = sends
            harness.feed(Self.conversation(harness), pieces: pieces)
            await harness.finish()
            #expect(harness.output.count == plain.output.count, "pieces of \(pieces), sends of \(sends)")
            #expect(harness.device.bytes == plain.device.bytes)
            #expect(harness.isFinished)
            harness.transmission.abandon()
            #expect(harness.budget.used == 0)
        }
    }

    @Test func `is not given more while a turn's replies wait to be sent`() async {
        let harness = EngineHarness(device: ScriptedDevice(byteCount: 1 << 20), isSharing: true)
        let request = harness.bytes(harness.header(.read, 0, 200_000))
        var shared = ByteBuffer()
        harness.transmission.receive(sharing: &shared) { output, _ in for byte in request + request + request { output.append(byte) } }
        for request in harness.transmission.takeWork() { harness.transmission.complete(await request.run()) }
        #expect(harness.transmission.outputByteCount == 3 * 200_016)
        #expect(!harness.wantsBytes)
        harness.transmission.dropOutput(3 * 200_016 - 1000)
        harness.transmission.proceed()
        #expect(harness.wantsBytes)
    }

    @Test func `receives little more than a header where a long payload may follow`() async {
        let harness = EngineHarness(device: ScriptedDevice(byteCount: 1 << 20), isSharing: true)
        var shared = ByteBuffer()
        shared.reserveCapacity(256 << 10)
        /// How much each receive may bring, when everything has arrived.
        func limits(_ sizes: Int...) -> [Int] {
            var stream = sizes.flatMap { harness.bytes(harness.header(.write, 0, UInt64($0)), [UInt8](repeating: 1, count: $0)) }[...]
            var limits: [Int] = []
            while !stream.isEmpty {
                let count = harness.transmission.receive(sharing: &shared) { output, limit in
                    limits.append(limit)
                    for byte in stream.prefix(limit) { output.append(byte) }
                    return min(limit, stream.count)
                }
                stream = stream.dropFirst(count)
            }
            return limits
        }
        let room = Transmission.receiveByteCount
        #expect(limits(200_000, 200_000, 200_000) == [room, 200_028 - room, 4096, 200_028 - 4096, 4096, 200_028 - 4096])
        #expect(limits(1000) == [4096])
        #expect(limits(1000) == [room])
        #expect(limits(132_000) == [room], "nothing was behind it")
        #expect(limits(1000) == [room])
    }

    @Test(arguments: [ReplyMode.simple, .extended], [0, 5])
    func `receives with a long payload the next header and no more, if told so`(mode: ReplyMode, cut: Int) async {
        let harness = EngineHarness(mode, device: ScriptedDevice(byteCount: 1 << 20), isSharing: true)
        harness.transmission.writePolicy.aloneFloor = 48 << 10
        let head = RequestHeader.byteCount(mode)
        let payloads = [100_000, 70_000, 120_000, 300, 80_000, 60_000].enumerated().map { [UInt8](repeating: UInt8($0 + 1), count: $1) }
        var stream: [UInt8] = []
        for (index, payload) in payloads.enumerated() {
            stream += harness.bytes(harness.header(.write, UInt64(index) << 17, UInt64(payload.count)), payload)
        }
        let total = stream.count
        var limits: [Int] = []
        var shared = ByteBuffer()
        while !stream.isEmpty {
            let count = harness.transmission.receive(sharing: &shared) { output, limit in
                limits.append(limit)
                let count = min(max(limit - cut, 1), stream.count)
                for byte in stream.prefix(count) { output.append(byte) }
                return count
            }
            stream.removeFirst(count)
            harness.collect()
        }
        if cut == 0 {
            let room = Transmission.receiveByteCount
            #expect(limits == [room, 170_000 + 2 * head - room + head, 120_000 + head, room, room])
        }
        #expect(total == payloads.reduce(0) { $0 + $1.count + head })
        harness.transmission.endOfInput()
        await harness.finish()
        #expect(harness.isFinished && harness.requestCount == 6 && harness.violation == nil)
        for (index, payload) in payloads.enumerated() {
            #expect(Array(harness.device.bytes[index << 17..<index << 17 + payload.count]) == payload)
        }
        harness.transmission.abandon()
        #expect(harness.budget.used == 0)
    }

    @Test func `keeps no buffer when nothing is under way`() async {
        let harness = EngineHarness(.structured, device: ScriptedDevice(byteCount: 1 << 20), isSharing: true)
        _ = await harness.ask(.write, 0, payload: [UInt8](repeating: 1, count: 100_000))
        _ = await harness.ask(.read, 0, 50_000)
        #expect(harness.inboxCapacity < 4096)
        #expect(harness.transmission.outputByteCount == 0)
    }
}

@Suite struct `Bytes that are sent from where they lie` {
    private static func transmission(
        _ file: HostFile, _ mode: ReplyMode, _ budget: MemoryBudget, pool: BufferPool = BufferPool(), writeTurns: WriteTurns = WriteTurns()
    ) -> Transmission {
        let session = Session(
            export: ExportDescription(id: 1, name: "", byteCount: file.byteCount, flags: .hasFlags, blockSizes: BlockSizes()),
            flags: .hasFlags, mode: mode, contexts: [])
        return Transmission(
            session: session, device: FileDevice(file), budget: budget, pool: pool, sendsSegments: true, writeTurns: writeTurns, wake: {})
    }

    /// A request, as it comes from the client.
    private static func appendWrite(_ offset: Int, _ count: Int, to output: inout OutputRawSpan) {
        RequestHeader(command: .write, cookie: 1, offset: UInt64(offset), length: UInt64(count)).encode(into: &output, mode: .simple)
        for _ in 0..<count { output.append(UInt8(1)) }
    }

    @Test(arguments: [ReplyMode.simple, .structured, .extended])
    func `are the right ones, and take none of our memory`(mode: ReplyMode) async throws {
        let contents = (0..<300_000).map { UInt8(truncatingIfNeeded: $0 &* 31 >> 3) }
        try await withFile(contents) { file in
            let budget = MemoryBudget(byteCountLimit: 1 << 30)
            var transmission = Self.transmission(file, mode, budget)
            var shared = ByteBuffer()
            for round in 0..<3 {
                for (offset, count) in [(0, 4096), (5, 70_000), (4095, 2), (200_000, 100_000), (299_999, 1)] {
                    let header = RequestHeader(command: .read, cookie: 9, offset: UInt64(offset), length: UInt64(count))
                    transmission.receive(sharing: &shared) { output, _ in header.encode(into: &output, mode: mode) }
                    var sink = CollectingSink()
                    transmission.showOutput(to: &sink)
                    let isSegment = sink.segmentByteCount > 0
                    #expect(sink.bytes.count == transmission.outputByteCount)
                    #expect(Array(sink.bytes.suffix(count)) == Array(contents[offset..<offset + count]))
                    // The first time they are read; what was read once is at hand.
                    #if os(Linux)
                    if round > 0 { #expect(isSegment, "\(count) at \(offset)") }
                    #endif
                    if isSegment { #expect(budget.used < 300_000) }
                    // In odd parts, so that pieces are cut.
                    while transmission.outputByteCount > 0 { transmission.dropOutput(min(777, transmission.outputByteCount)) }
                }
            }
            transmission.abandon()
            #expect(budget.used == 0)
        }
    }

    // Elsewhere the kernel takes longer to copy them.
    @Test(arguments: [1, 65_536, 65_564, 1 << 20]) func `lie at the beginning of a line of the cache`(count: Int) {
        let pool = BufferPool()
        for _ in 0..<4 {
            var buffer = pool.takeAligned(count)
            buffer.withUnsafeMutableWritableBytes { #expect(Int(bitPattern: $0.baseAddress) % 64 == 0 && $0.count >= count) }
            #expect(buffer.readableBytes == 0)
            let capacity = buffer.storageCapacity
            buffer.writeRepeatingByte(1, count: count)
            #expect(buffer.readableBytes == count && buffer.storageCapacity == capacity)
            pool.give(buffer)
        }
        #expect(pool.keptCount == 1)
    }

    // A fresh megabyte for each write would cost a fault and zeroes for each of its pages.
    @Test(arguments: [600_000, 65_536]) func `that tasks have written, leave memory for those to come if they are long`(count: Int) async throws {
        // Past the page cache nothing is written at once.
        try await withFile([UInt8](repeating: 0, count: 1 << 20), isDirect: true) { file in
            let pool = BufferPool()
            var transmission = Self.transmission(file, .simple, MemoryBudget(byteCountLimit: 1 << 30), pool: pool)
            transmission.writePolicy.aloneFloor = 48 << 10
            var shared = ByteBuffer()
            func arrive() {
                var request = ByteBuffer()
                request.writeWithOutputRawSpan(minimumWritableBytes: 28 + count) { Self.appendWrite(0, count, to: &$0) }
                while request.readableBytes > 0 {
                    transmission.receive(sharing: &shared) { output, limit in
                        for byte in request.readBytes(length: min(limit, 40_000, request.readableBytes)) ?? [] { output.append(byte) }
                    }
                }
            }
            for round in 0..<2 {
                arrive()
                arrive()
                let work = transmission.takeWork()
                // While a task has it, nobody else can. Replies have one, too.
                #expect(work.count == 2 && pool.keptCount == min(round, 1))
                for request in work { transmission.complete(await request.run()) }
                transmission.dropOutput(transmission.outputByteCount)
                #expect(pool.keptCount == (count > 1 << 19 ? 3 : 1))
            }
            transmission.abandon()
        }
    }

    /// A write that was carried out; or left to a task, to see how long it takes.
    private static func isBegun(_ transmission: borrowing Transmission) -> Bool {
        transmission.outputByteCount == 16 || transmission.requestsInFlight == 1
    }

    @Test(arguments: [true, false])
    func `that are long, let a write of another loop go first, but not for ever`(isInPieces: Bool) async throws {
        try await withFile([UInt8](repeating: 0, count: 1 << 20)) { file in
            let turns = WriteTurns()
            var transmission = Self.transmission(file, .simple, MemoryBudget(byteCountLimit: 1 << 30), writeTurns: turns)
            transmission.writePolicy.exclusiveFloor = 16_384
            var shared = ByteBuffer()
            shared.reserveCapacity(1 << 20)
            func arrive(_ offset: Int, _ count: Int) {
                let request = [UInt8](unsafeUninitializedCapacity: 28 + count) { bytes, initialized in
                    var output = OutputRawSpan(buffer: UnsafeMutableRawBufferPointer(bytes), initializedCount: 0)
                    Self.appendWrite(offset, count, to: &output)
                    initialized = output.finalize(for: UnsafeMutableRawBufferPointer(bytes))
                }
                for part in isInPieces ? [request.prefix(5000), request.dropFirst(5000)] : [request[...]] {
                    transmission.receive(sharing: &shared) { output, _ in for byte in part { output.append(byte) } }
                }
            }
            _ = turns.take {
                // Short ones do not look.
                arrive(0, 8192)
                #expect(Self.isBegun(transmission) && !transmission.isHeldUp)
                return true
            }
            transmission.dropOutput(transmission.outputByteCount)
            let before = transmission.requestsInFlight
            _ = turns.take {
                arrive(65_536, 16_384)
                transmission.proceed()
                #expect(transmission.isHeldUp && transmission.outputByteCount == 0 && transmission.requestsInFlight == before)
                #expect(!transmission.wantsBytes && transmission.isMidMessage)
                // Who is paused does not ask again and again.
                transmission.pause()
                #expect(!transmission.isHeldUp && transmission.outputByteCount == 0)
                transmission.resume()
                #expect(transmission.isHeldUp && transmission.outputByteCount == 0)
                return true
            }
            transmission.proceed()
            #expect(!transmission.isHeldUp && transmission.outputByteCount + 16 * transmission.requestsInFlight == 16 + 16 * before)
            transmission.dropOutput(transmission.outputByteCount)
            let later = transmission.requestsInFlight
            _ = turns.take {
                arrive(131_072, 16_384)
                var count = 0
                while transmission.isHeldUp, count < 1 << 20 {
                    transmission.proceed()
                    count += 1
                }
                #expect(count > 100 && count < 1 << 20)
                #expect(transmission.outputByteCount + 16 * transmission.requestsInFlight == 16 + 16 * later)
                return true
            }
            transmission.abandon()
        }
    }

    @Test(arguments: [(32 << 10, 8192), (128 << 10, 8192), (128 << 10, 64 << 10)])
    func `that are written, are so many in one turn as it is told`(limit: Int, size: Int) async throws {
        try await withFile([UInt8](repeating: 0, count: 1 << 20)) { file in
            var transmission = Self.transmission(file, .simple, MemoryBudget(byteCountLimit: 1 << 30))
            // The other one is for writes of another length.
            transmission.writePolicy.turnByteCount = size < 64 << 10 ? limit : 1
            transmission.writePolicy.longTurnByteCount = size < 64 << 10 ? 1 : limit
            var shared = ByteBuffer()
            shared.reserveCapacity(1 << 20)
            transmission.receive(sharing: &shared) { output, _ in
                for index in 0..<(512 << 10) / size { Self.appendWrite(index * size, size, to: &output) }
            }
            // One may have been left to a task, to see how long it takes.
            let first = transmission.requestCount - UInt64(transmission.takeWork().count)
            #expect(transmission.shouldSend && first == UInt64(limit / size))
            transmission.dropOutput(transmission.outputByteCount)
            transmission.proceed()
            #expect(transmission.requestCount >= UInt64(2 * limit / size))
            transmission.abandon()
        }
    }
}
