import NBDProtocol
import Testing

@testable import NBDEngine

/// What of the order of requests is promised, and what follows which header.
@Suite struct `Order of requests` {
    // P-ORD-01, P-CMD-FLUSH-1, S-CO-09: the flush reaches the device after each write that was answered, whatever is still in flight.
    @Test(arguments: [ReplyMode.simple, .structured, .extended])
    func `a FLUSH comes after every write that was answered before it`(mode: ReplyMode) async {
        let harness = EngineHarness(mode)
        _ = await harness.ask(.write, 0, payload: [1])
        _ = await harness.ask(.writeZeroes, 512, 512)
        _ = await harness.ask(.trim, 1024, 512)
        // In flight, not answered: it may come before or after.
        harness.feed(harness.bytes(harness.header(.write, 4096, 1), [2]))
        let pending = harness.work.removeFirst()
        #expect(await harness.ask(.flush).map(\.errorCode) == [nil])
        #expect(harness.device.diary == ["write 0+1", "zero 512+512 unmap", "discard 1024+512", "flush"])
        harness.transmission.complete(await pending.run())
        #expect(harness.device.diary.last == "write 4096+1")
    }

    // P-MC-01, P-MC-02: both connections have one device and nothing of their own in between.
    @Test func `a FLUSH on one connection covers what another has answered`() async {
        let device = ScriptedDevice()
        let (one, other) = (EngineHarness(.simple, device: device), EngineHarness(.extended, device: device))
        _ = await one.ask(.write, 0, payload: [1, 2, 3])
        #expect(await other.ask(.flush).map(\.errorCode) == [nil])
        #expect(device.diary == ["write 0+3", "flush"])
        let reply = await other.ask(.read, 0, 3, .df)
        #expect(reply.first?.payload == bigEndian(UInt64(0)) + [1, 2, 3])
    }

    // P-REQ-01, S-REQ-05: behind every other command the next header follows at once, whatever its length says.
    @Test(arguments: [ReplyMode.simple, .structured, .extended])
    func `only WRITE is followed by data`(mode: ReplyMode) async {
        let commands: [Command] = [.read, .flush, .trim, .cache, .writeZeroes, .blockStatus, Command(rawValue: 77)]
        for command in commands {
            let harness = EngineHarness(mode)
            harness.feed(harness.bytes(harness.header(command, 0, 512)) + harness.bytes(harness.header(.flush)))
            #expect(harness.requestCount == 2, "\(command)")
            #expect(!harness.isMidMessage, "\(command)")
        }
        let harness = EngineHarness(mode)
        harness.feed(harness.bytes(harness.header(.write, 0, 512)))
        #expect(harness.isMidMessage)
        harness.feed([UInt8](repeating: 1, count: 512) + harness.bytes(harness.header(.flush)))
        #expect(harness.requestCount == 2 && !harness.isMidMessage)
    }

    // P-EXT-10. Found by the transmission fuzzer: the junk was answered with offset 0, and a strict client closed.
    @Test func `an extended reply to FLUSH repeats its meaningless offset`() async {
        let harness = EngineHarness(.extended)
        #expect(await harness.ask(.flush, 77, 99).map(\.offset) == [77])
        #expect(harness.device.diary == ["flush"])
    }
}
