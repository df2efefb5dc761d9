import Block
import NBDProtocol
import NIOCore
import Testing

@testable import NBDEngine

@Suite struct `Streams of requests` {
    private static func conversation(_ harness: EngineHarness) -> [UInt8] {
        harness.bytes(harness.header(.write, 512, 1000), [UInt8](repeating: 0x55, count: 1000))
            + harness.bytes(harness.header(.read, 500, 1024))
            + harness.bytes(harness.header(.write, 1 << 30, 300), [UInt8](repeating: 1, count: 300))
            + harness.bytes(harness.header(.flush))
            + harness.bytes(harness.header(.blockStatus, 0, 4096))
            + harness.bytes(harness.header(Command(rawValue: 77)))
            + harness.bytes(harness.header(.trim, 0, 512, .fua))
            + harness.bytes(harness.header(.disconnect))
    }

    // S-REQ-01, S-REQ-10, S-REQ-20, S-BUG-11: cut at every byte, in pieces of every size
    @Test(arguments: [ReplyMode.simple, .structured, .extended])
    func `are understood however they are cut`(mode: ReplyMode) async {
        let whole = EngineHarness(mode, device: ScriptedDevice(byteCount: 8192))
        whole.feed(Self.conversation(whole))
        await whole.finish()
        let length = Self.conversation(whole).count
        for cut in 1..<length {
            let harness = EngineHarness(mode, device: ScriptedDevice(byteCount: 8192))
            let bytes = Self.conversation(harness)
            harness.feed(Array(bytes.prefix(cut)))
            harness.feed(Array(bytes.dropFirst(cut)))
            await harness.finish()
            #expect(harness.output.count == whole.output.count, "cut at \(cut)")
            #expect(harness.isFinished)
        }
        for size in [1, 2, 3, 7, 27, 29, 31, 33, 1000] {
            let harness = EngineHarness(mode, device: ScriptedDevice(byteCount: 8192))
            harness.feed(Self.conversation(harness), pieces: size)
            await harness.finish()
            #expect(harness.output.count == whole.output.count, "pieces of \(size)")
            #expect(harness.device.bytes == whole.device.bytes)
        }
    }

    // S-CO-01, S-CO-02, P-REQ-08, S-REP-10, S-REP-09, P-REP-05, P-ORD-03
    @Test func `run side by side and are answered in the order of completion`() async {
        let harness = EngineHarness()
        let headers = (0..<3).map { harness.header(.read, UInt64($0) * 4096, 16) }
        harness.feed(headers.flatMap { harness.bytes($0) })
        #expect(harness.work.count == 3)
        for index in [2, 0, 1] { harness.transmission.complete(await harness.work[index].run()) }
        harness.collect()
        let replies = WireReply.parse(
            harness.output, mode: .simple, readLengths: Dictionary(uniqueKeysWithValues: headers.map { ($0.cookie, 16) }))
        #expect(replies.map(\.cookie) == [2, 0, 1].map { headers[$0].cookie })
    }

    // P-REQ-02: cookies are the client's business
    @Test func `equal cookies are no problem`() async {
        let harness = EngineHarness(.structured)
        for _ in 0..<4 { harness.feed(harness.bytes(RequestHeader(command: .read, cookie: 7, offset: 0, length: 16))) }
        await harness.finish()
        #expect(harness.replies.map(\.cookie) == [7, 7, 7, 7])
    }

    // S-CMD-30, S-BUG-21, P-CMD-DISC-1, S-CLI-07
    @Test func `DISC and the end of input finish and answer what is in flight`() async {
        for endsByDisconnect in [true, false] {
            let harness = EngineHarness()
            harness.feed(harness.bytes(harness.header(.write, 0, 4), [1, 2, 3, 4]))
            if endsByDisconnect { harness.feed(harness.bytes(harness.header(.disconnect))) } else { harness.transmission.endOfInput() }
            #expect(!harness.isFinished)
            #expect(!harness.wantsBytes || !endsByDisconnect)
            await harness.finish()
            #expect(harness.replies.map(\.errorCode) == [nil])
            #expect(harness.isFinished)
            #expect(harness.violation == nil)
        }
    }
}

@Suite struct `Back-pressure and limits` {
    // S-CO-03, S-CO-04, S-LIM-07, P-GEN-07
    @Test func `at the request limit nothing more is decoded or read until one is done`() async {
        var limits = TransmissionLimits()
        limits.requestLimit = 4
        let harness = EngineHarness(limits: limits)
        for _ in 0..<10 { harness.feed(harness.bytes(harness.header(.flush))) }
        #expect(harness.work.count == 4)
        #expect(!harness.wantsBytes)
        harness.transmission.complete(await harness.work.removeFirst().run())
        harness.collect()
        #expect(harness.work.count == 4)
        await harness.finish()
        #expect(harness.replies.count == 10)
        #expect(harness.wantsBytes)
    }

    // S-CO-06, S-CO-03
    @Test func `a client that does not read its replies is not read either`() async {
        var limits = TransmissionLimits()
        limits.outputByteCountLimit = 10_000
        let harness = EngineHarness(limits: limits)
        for _ in 0..<10 { harness.feed(harness.bytes(harness.header(.read, 0, 4096))) }
        while !harness.work.isEmpty {
            harness.transmission.complete(await harness.work.removeFirst().run())
            harness.collect()
        }
        #expect(!harness.wantsBytes)
        let sent = harness.output.count
        harness.acknowledge(sent)
        #expect(harness.wantsBytes)
    }

    // S-CO-07, S-REQ-09, S-LIM-04
    @Test func `bytes of one client are bounded, yet one large request is always admitted`() async {
        var limits = TransmissionLimits()
        limits.byteCountLimit = 1 << 20
        let harness = EngineHarness(device: ScriptedDevice(byteCount: 8 << 20), limits: limits)
        harness.feed(harness.bytes(harness.header(.read, 0, 4 << 20)))
        harness.feed(harness.bytes(harness.header(.read, 0, 512)))
        #expect(harness.work.count == 1, "the second waits for the first")
        #expect(!harness.wantsBytes)
        await harness.finish()
        let expected: Int = (4 << 20) + 16 + 512 + 16
        #expect(harness.output.count == expected)
        #expect(harness.budget.used == 0)
    }

    // S-CO-07, S-CVE-07
    @Test func `bytes of all clients are bounded, first come, first served`() async {
        let budget = MemoryBudget(byteCountLimit: 80 << 20)
        let clients = (0..<4).map { _ in EngineHarness(device: ScriptedDevice(byteCount: 32 << 20), budget: budget) }
        for client in clients { client.feed(client.bytes(client.header(.read, 0, 30 << 20))) }
        #expect(clients.map(\.work.count) == [1, 1, 0, 0])
        #expect(budget.isContended)
        #expect(budget.used <= budget.byteCountLimit)
        await clients[0].finish()
        #expect(clients.map(\.wakes.value) == [0, 0, 1, 0])
        clients[2].transmission.memoryGranted()
        clients[2].collect()
        #expect(clients[2].work.count == 1)
        clients[3].transmission.abandon()
        #expect(!budget.isContended)
        await clients[1].finish()
        await clients[2].finish()
        #expect(budget.used == 0)
    }

    // S-CO-07: who hoards does not stop the others
    @Test func `a little memory is there for everybody, whoever else waits`() async {
        let budget = MemoryBudget(byteCountLimit: 80 << 20)
        let hoarders = (0..<3).map { _ in EngineHarness(device: ScriptedDevice(byteCount: 32 << 20), budget: budget) }
        for hoarder in hoarders { hoarder.feed(hoarder.bytes(hoarder.header(.write, 0, 30 << 20))) }
        #expect(budget.isContended)
        let modest = EngineHarness(budget: budget)
        #expect(await modest.ask(.read, 0, 4096).map(\.errorCode) == [nil])
        #expect(await modest.ask(.write, 0, payload: [UInt8](repeating: 1, count: 65536)).map(\.errorCode) == [nil])
        for hoarder in hoarders { hoarder.transmission.abandon() }
        #expect(budget.used == 0)
    }

    // S-CLI-06, S-CLI-07
    @Test func `a lost connection gives everything back, whatever is in flight`() async {
        let harness = EngineHarness()
        harness.feed(harness.bytes(harness.header(.read, 0, 4096)))
        harness.feed(harness.bytes(harness.header(.write, 0, 4096), [1, 2, 3]))
        #expect(harness.budget.used > 0)
        harness.transmission.abandon()
        #expect(harness.budget.used == 0)
        harness.transmission.complete(await harness.work.removeFirst().run())
        harness.collect()
        #expect(harness.budget.used == 0)
        #expect(harness.output.isEmpty)
    }

    // P-GEN-07, S-LIM-12: memory does not follow the length of the conversation
    @Test func `a client that always leaves half a message behind does not make the inbox grow`() async {
        let harness = EngineHarness(.structured, device: ScriptedDevice(byteCount: 4096))
        let request = harness.bytes(harness.header(Command(rawValue: 99)))
        harness.feed(Array(request.prefix(10)))
        for _ in 0..<20_000 {
            harness.feed(Array(request.dropFirst(10) + request.prefix(10)))
            harness.transmission.didSend(harness.output.count - harness.acknowledged)
            harness.acknowledged = harness.output.count
        }
        #expect(harness.inboxCapacity < 10_000)
        #expect(harness.requestCount == 20_000)
    }

    @Test func `refusals are bounded too`() {
        var limits = TransmissionLimits()
        limits.outputByteCountLimit = 4096
        let harness = EngineHarness(.structured, limits: limits)
        let bad = harness.bytes(harness.header(Command(rawValue: 99)))
        harness.feed((0..<1000).flatMap { _ in bad })
        #expect(harness.output.count < 5000)
        #expect(!harness.wantsBytes)
    }
}

@Suite struct `Shutdown` {
    // P-TERM-04, S-ERR-08, P-ERR-08, S-SRV-08
    @Test(arguments: [ReplyMode.simple, .structured, .extended])
    func `what is in flight is finished, what comes later is ESHUTDOWN`(mode: ReplyMode) async {
        let harness = EngineHarness(mode)
        harness.feed(harness.bytes(harness.header(.write, 0, 4), [1, 2, 3, 4]))
        harness.transmission.beginShutdown()
        harness.feed(harness.bytes(harness.header(.write, 0, 4), [5, 6, 7, 8]))
        harness.feed(harness.bytes(harness.header(.flush)))
        harness.feed(harness.bytes(harness.header(.disconnect)))
        await harness.finish()
        #expect(harness.replies.map(\.errorCode) == [.shutdown, .shutdown, nil])
        #expect(Array(harness.device.bytes.prefix(4)) == [1, 2, 3, 4])
        #expect(harness.isFinished)
    }
}

@Suite struct `Trace points` {
    // S-TRC-17…28
    @Test func `tell the story of a transmission`() async {
        let harness = EngineHarness(.structured, traces: true)
        harness.device.set { $0.extents = [(65536, .data), (65536, .zero), (65536, .data)] }
        _ = await harness.ask(.read, 0, 196608)
        _ = await harness.ask(.write, 0, payload: [1])
        _ = await harness.ask(.blockStatus, 0, 4096)
        _ = await harness.ask(.read, 1 << 30, 1)
        _ = await harness.ask(.read, 0, 0)
        harness.transmission.abandon()
        #expect(
            harness.events.names == [
                "nbd_blk_aio_attached", "nbd_receive_request", "nbd_co_send_chunk_read", "nbd_co_send_chunk_read_hole",
                "nbd_co_send_chunk_read",
                "nbd_receive_request", "nbd_co_receive_request_payload_received", "nbd_co_send_simple_reply", "nbd_receive_request",
                "nbd_co_send_extents", "nbd_receive_request", "nbd_co_send_chunk_error", "nbd_receive_request", "nbd_co_send_chunk_done",
                "nbd_blk_aio_detach",
            ])
    }
}

@Suite struct `Turns` {
    // S-REP-02: replies that wait are sent before more are made
    @Test func `stop when enough replies wait, and go on where they stopped`() async {
        let harness = EngineHarness(.structured, device: ScriptedDevice(byteCount: 4096))
        let bad = harness.bytes(harness.header(Command(rawValue: 99)))
        let count = 2 * Transmission.turnByteCountLimit / 50
        harness.transmission.receive(ByteBuffer(bytes: (0..<count).flatMap { _ in bad }))
        var turns = 0
        while harness.shouldSend {
            turns += 1
            let before = harness.output.count
            harness.collect()
            #expect(harness.output.count - before < Transmission.turnByteCountLimit + 100)
            harness.transmission.proceed()
        }
        harness.collect()
        #expect(turns >= 1)
        #expect(harness.replies.count == count)
    }

    // Buffers of sent replies are used again, and nobody sees what was in them
    @Test func `reuse memory without mixing replies up`() async {
        let harness = EngineHarness(.simple)
        for round in 0..<50 as Range<UInt64> {
            let replies = await harness.ask(.read, round * 512, 6000)
            #expect(replies[0].payload == Array(harness.device.bytes[Int(round) * 512..<Int(round) * 512 + 6000]))
        }
    }
}
