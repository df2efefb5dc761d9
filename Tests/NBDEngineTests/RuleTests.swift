import Block
import NBDProtocol
import Testing

@testable import NBDEngine

private let modes: [ReplyMode] = [.simple, .structured, .extended]

/// Each is asked, and then whether the stream is still in step.
@Suite struct `Requests that are refused` {
    private func refusal(
        _ harness: EngineHarness, _ command: Command, _ offset: UInt64 = 0, _ length: UInt64 = 0, _ flags: CommandFlags = [],
        payload: [UInt8] = []
    ) async -> NBDError? {
        let replies = await harness.ask(command, offset, length, flags, payload: payload)
        #expect(replies.count == 1 && replies[0].isDone)
        if harness.mode != .simple, replies[0].errorCode != nil {
            #expect(replies[0].type == .error)
            #expect(!replies[0].text.isEmpty)
        }
        #expect(harness.device.diary == [])
        #expect(await harness.ask(.read, 0, 16).map(\.errorCode) == [nil])
        harness.device.set { $0.diary = [] }
        return replies[0].errorCode
    }

    // S-REQ-11, S-REQ-17, S-BUG-02, S-CMD-12, P-ERR-04, P-FLG-02, P-CMD-WRITE-2, P-CMD-ZERO-4
    @Test(arguments: modes)
    func `every kind of write to a read-only export is EPERM, in and out of range`(mode: ReplyMode) async {
        let harness = EngineHarness(mode, device: ScriptedDevice(isReadOnly: true))
        let data = [UInt8](repeating: 1, count: 512)
        for offset in [0, 1 << 20, UInt64.max] {
            #expect(await refusal(harness, .write, offset, payload: data) == .notPermitted)
            #expect(await refusal(harness, .writeZeroes, offset, 512) == .notPermitted)
            #expect(await refusal(harness, .trim, offset, 512) == .notPermitted)
        }
    }

    // S-REQ-07, S-REQ-10, S-REQ-12, S-BUG-02, P-ERR-02, P-ERR-03, P-REQ-06, P-SIZE-10
    @Test(
        arguments: modes,
        [(1 << 20, 1), ((1 << 20) - 1, 2), (UInt64.max, 1), (UInt64.max - 1, 512), ((1 << 20) + 1, 0)] as [(UInt64, UInt64)])
    func `a range beyond the end is ENOSPC for writes and EINVAL for the rest`(
        mode: ReplyMode, range: (start: UInt64, count: UInt64)
    ) async {
        let harness = EngineHarness(mode)
        let data = [UInt8](repeating: 1, count: Int(range.count))
        #expect(await refusal(harness, .write, range.start, payload: data) == .noSpace)
        #expect(await refusal(harness, .writeZeroes, range.start, range.count) == .noSpace)
        for command in [Command.read, .trim, .cache] {
            #expect(await refusal(harness, command, range.start, range.count) == .invalid)
        }
        #expect(await refusal(harness, .blockStatus, range.start, range.count) == .invalid)
    }

    // S-REQ-15, P-REQ-03, P-EXT-09
    @Test(arguments: modes)
    func `a flag on a command that does not know it is EINVAL`(mode: ReplyMode) async {
        let harness = EngineHarness(mode)
        let allowed: [Command: CommandFlags] = [
            .read: mode == .simple ? .fua : [.fua, .df], .write: mode == .extended ? [.fua, .payloadLength] : .fua, .trim: .fua,
            .flush: .fua, .cache: .fua, .writeZeroes: [.fua, .noHole, .fastZero],
        ]
        for (command, known) in allowed {
            for bit in 0..<16 {
                let flag = CommandFlags(rawValue: 1 << bit)
                guard !known.contains(flag) else { continue }
                let hasPayload = command == .write || (mode == .extended && flag == .payloadLength)
                let payload = hasPayload ? [UInt8](repeating: 0, count: 16) : []
                #expect(await refusal(harness, command, 0, 16, flag, payload: payload) == .invalid, "\(command) with bit \(bit)")
            }
        }
    }

    // S-REQ-16, P-CMD-ZERO-3
    @Test func `FAST_ZERO that was not advertised is EINVAL`() async {
        let harness = EngineHarness(flags: [.hasFlags, .writeZeroes])
        #expect(await refusal(harness, .writeZeroes, 0, 512, .fastZero) == .invalid)
        #expect(await refusal(harness, .writeZeroes, 0, 512, .fua) == .invalid, "nor was FUA")
        #expect(await refusal(harness, .trim, 0, 512) == .invalid, "nor TRIM")
    }

    // S-REQ-19, P-REQ-03
    @Test(arguments: modes, [8, 9, 255, 65535] as [UInt16])
    func `an unknown command is EINVAL and named`(mode: ReplyMode, number: UInt16) async {
        let harness = EngineHarness(mode)
        #expect(await refusal(harness, Command(rawValue: number), 0, 16) == .invalid)
        let replies = await harness.ask(Command(rawValue: number))
        if mode != .simple { #expect(replies[0].text.contains("\(number)")) }
    }

    // S-REQ-08, S-LIM-01, P-CMD-READ-7, P-SIZE-12, P-ERR-05, S-CVE-10
    @Test(arguments: modes)
    func `a READ above 32 MiB is EOVERFLOW`(mode: ReplyMode) async {
        let harness = EngineHarness(mode, device: ScriptedDevice(byteCount: (32 << 20) + 1))
        #expect(await refusal(harness, .read, 0, (32 << 20) + 1) == .overflow)
    }

    // P-SIZE-11, S-REQ-08: commands without payload may be as long as the export
    @Test(arguments: [Command.trim, .writeZeroes, .cache])
    func `a length above 32 MiB is fine without payload`(command: Command) async {
        let harness = EngineHarness(device: ScriptedDevice(byteCount: 40 << 20))
        #expect(await harness.ask(command, 0, 40 << 20).map(\.errorCode) == [nil])
    }
}

@Suite struct `Requests that end the connection` {
    // S-REQ-04, P-REQ-05, S-REQ-21
    @Test(arguments: modes)
    func `bad magic closes at once and replies nothing`(mode: ReplyMode) {
        let harness = EngineHarness(mode)
        harness.feed([1, 2, 3, 4] + [UInt8](repeating: 0, count: 28))
        #expect(harness.isFinished)
        #expect(harness.violation == .badRequestMagic(0x0102_0304))
        #expect(harness.output.isEmpty)
    }

    // S-REQ-01, S-NEW-02, P-EXT-01: the other mode's magic is as bad
    @Test func `a compact header after extended headers were agreed closes`() {
        let harness = EngineHarness(.extended)
        harness.feed(EngineHarness(.simple).bytes(harness.header(.read, 0, 512)) + [0, 0, 0, 0])
        #expect(harness.violation == .badRequestMagic(0x2560_9513))
    }

    // S-REQ-08, S-REQ-20, S-BUG-10, S-CVE-10
    @Test(arguments: [ReplyMode.simple, .structured])
    func `an oversize WRITE is answered, then nothing behind it is parsed`(mode: ReplyMode) {
        let harness = EngineHarness(mode)
        let smuggled = harness.bytes(harness.header(.read, 0, 512))
        harness.feed(harness.bytes(harness.header(.write, 0, (32 << 20) + 1)) + smuggled)
        #expect(harness.replies.map(\.errorCode) == [.invalid])
        #expect(harness.isFinished)
        #expect(harness.work.isEmpty)
        #expect(harness.violation == .payloadTooLong(byteCount: (32 << 20) + 1))
    }

    // P-EXT-08, S-NEW-03
    @Test(arguments: [Command.write, .read, .blockStatus])
    func `an extended payload above 32 MiB closes`(command: Command) {
        let harness = EngineHarness(.extended)
        harness.feed(harness.bytes(harness.header(command, 0, 1 << 40, .payloadLength)))
        #expect(harness.violation == .payloadTooLong(byteCount: 1 << 40))
        #expect(harness.output.isEmpty)
    }

    // S-REQ-06, P-CMD-DISC-1, P-TERM-02
    @Test(arguments: modes)
    func `DISC ends cleanly whatever its fields say`(mode: ReplyMode) {
        let harness = EngineHarness(mode)
        harness.feed(
            harness.bytes(RequestHeader(flags: [.fua, .df, .reqOne], command: .disconnect, cookie: 1, offset: .max, length: 0xFFFF_FFFF)))
        #expect(harness.isFinished)
        #expect(harness.violation == nil)
        #expect(harness.output.isEmpty)
        #expect(!harness.wantsBytes)
    }

    // S-REQ-02
    @Test func `the end of input is clean between requests and a violation inside one`() {
        let clean = EngineHarness()
        clean.transmission.endOfInput()
        #expect(clean.isFinished && clean.violation == nil)

        let whole = clean.bytes(clean.header(.write, 0, 100)) + [UInt8](repeating: 0, count: 100)
        for count in 1..<whole.count {
            let harness = EngineHarness()
            harness.feed(Array(whole.prefix(count)))
            harness.transmission.endOfInput()
            #expect(harness.isFinished && harness.violation == .truncated, "after \(count) bytes")
        }
    }
}

@Suite struct `Extended headers` {
    // P-EXT-07, S-NEW-03
    @Test func `a WRITE without PAYLOAD_LEN is tolerated and traced`() async {
        let harness = EngineHarness(.extended, traces: true)
        let header = RequestHeader(command: .write, cookie: 5, offset: 0, length: 4)
        harness.feed(harness.bytes(header, [9, 9, 9, 9]))
        await harness.finish()
        #expect(harness.replies.map(\.errorCode) == [nil])
        #expect(Array(harness.device.bytes.prefix(4)) == [9, 9, 9, 9])
        #expect(harness.events.names.contains("nbd_co_receive_ext_payload_compliance"))
    }

    // P-EXT-10
    @Test func `every chunk repeats the request's offset`() async {
        let harness = EngineHarness(.extended)
        harness.device.set { $0.extents = [(65536, .data), (65536, .zero), (65536, .data)] }
        let replies = await harness.ask(.read, 4096, 131072)
        #expect(replies.count == 3)
        #expect(replies.allSatisfy { $0.offset == 4096 })
    }
}

@Suite struct `Alignment` {
    // S-REQ-14, S-INFO-19, P-SIZE-08
    @Test func `a request that breaks the promised block is served and traced`() async {
        let harness = EngineHarness(minimumBlock: 512, traces: true)
        #expect(await harness.ask(.read, 1, 2).map(\.errorCode) == [nil])
        #expect(harness.events.names.contains("nbd_co_receive_align_compliance"))
        let aligned = EngineHarness(minimumBlock: 512, traces: true)
        _ = await aligned.ask(.read, 512, 512)
        #expect(!aligned.events.names.contains("nbd_co_receive_align_compliance"))
    }
}
