import Block
import NBDProtocol
import Testing

@testable import NBDEngine

private let modes: [ReplyMode] = [.simple, .structured, .extended]

@Suite struct `READ` {
    // S-CMD-02, S-REP-01, S-REP-02, P-CMD-READ-1, P-REP-01
    @Test func `is answered with header and data`() async {
        let harness = EngineHarness()
        let replies = await harness.ask(.read, 1000, 2000)
        #expect(replies.count == 1)
        #expect(replies[0].error == 0)
        #expect(replies[0].payload == Array(harness.device.bytes[1000..<3000]))
    }

    // S-CMD-03, S-CMD-05, S-REP-04, P-REQ-07, S-REQ-13
    @Test func `of nothing succeeds, at the very end too`() async {
        #expect(await EngineHarness().ask(.read, 1 << 20, 0) == [WireReply(cookie: 0x1111_0001)])
        #expect(await EngineHarness(.structured).ask(.read, 5, 0) == [WireReply(type: ChunkType.none, flags: 1, cookie: 0x1111_0001)])
        #expect(
            await EngineHarness(.extended).ask(.read, 5, 0) == [WireReply(type: ChunkType.none, flags: 1, cookie: 0x1111_0001, offset: 5)])
    }

    // S-CMD-04, S-CMD-10, S-REP-05, P-CMD-READ-3, P-CMD-READ-4
    @Test(arguments: [ReplyMode.structured, .extended])
    func `with DF is one chunk of data, holes spelled out`(mode: ReplyMode) async {
        let harness = EngineHarness(mode)
        harness.device.set { $0.extents = [(1 << 20, [.hole, .zero])] }
        let replies = await harness.ask(.read, 4096, 1 << 19, .df)
        #expect(replies.map(\.type) == [.offsetData])
        #expect(replies[0].isDone)
        let expected = bigEndian(UInt64(4096)) + Array(harness.device.bytes[4096..<(4096 + (1 << 19))])
        #expect(replies[0].payload == expected)
    }

    // S-CMD-06, S-REP-06, S-REP-13, P-CMD-READ-2, P-CMD-READ-6, P-REP-04
    @Test(arguments: [ReplyMode.structured, .extended])
    func `shows holes in ascending chunks that cover the range exactly`(mode: ReplyMode) async {
        let harness = EngineHarness(mode)
        harness.device.set {
            $0.extents = [(65536, .data), (65536, [.hole, .zero]), (4096, .data), (512, .zero), (4096, .data), (131072, .zero)]
        }
        let replies = await harness.ask(.read, 1024, 262144)
        #expect(replies.map(\.type) == [.offsetData, .offsetHole, .offsetData, .offsetHole])
        #expect(replies.map(\.flags) == [0, 0, 0, 1])
        var position: UInt64 = 1024
        for reply in replies {
            #expect(number(reply.payload.prefix(8)) == position)
            position += reply.type == .offsetHole ? number(reply.payload.dropFirst(8)) : UInt64(reply.payload.count - 8)
        }
        #expect(position == 1024 + 262144)
        #expect(replies.allSatisfy { $0.cookie == replies[0].cookie })
    }

    // S-CMD-06: small reads never ask for the status
    @Test func `below the floor does not look for holes`() async {
        let harness = EngineHarness(.structured)
        harness.device.set { $0.extents = [(1 << 20, .zero)] }
        #expect(await harness.ask(.read, 0, 4096).map(\.type) == [.offsetData])
        #expect(harness.device.diary == ["read 0+4096"])
    }

    // S-CMD-07
    @Test func `whose status query fails is an error`() async {
        let harness = EngineHarness(.structured)
        harness.device.set { $0.failure = { what, _ in what == "status" ? BlockError(.inputOutput, "no map") : nil } }
        let replies = await harness.ask(.read, 0, 65536)
        #expect(replies.map(\.type) == [.error])
        #expect(replies[0].errorCode == .inputOutput)
        #expect(replies[0].text == "no map")
        #expect(replies[0].isDone)
    }

    // S-CMD-08, S-BUG-03, S-REP-08, P-CMD-READ-5, P-REP-08
    @Test func `that fails in the middle keeps what came before and says where it ended`() async {
        let harness = EngineHarness(.structured)
        harness.device.set {
            $0.extents = [(65536, .data), (65536, .zero), (65536, .data)]
            $0.failure = { what, offset in what == "read" && offset >= 131072 ? BlockError(.inputOutput, "bad sector") : nil }
        }
        let replies = await harness.ask(.read, 0, 196608)
        #expect(replies.map(\.type) == [.offsetData, .offsetHole, .errorOffset])
        #expect(replies[2].errorCode == .inputOutput)
        #expect(number(replies[2].payload.suffix(8)) == 131072)
        #expect(replies.map(\.isDone) == [false, false, true])
        #expect(await harness.ask(.read, 0, 512).map(\.type) == [.offsetData])
    }

    // S-CMD-09, P-REP-02
    @Test(arguments: modes)
    func `that fails is an error, and the connection goes on`(mode: ReplyMode) async {
        let harness = EngineHarness(mode)
        harness.device.set { $0.failure = { what, _ in what == "read" ? BlockError(.inputOutput, "bad sector") : nil } }
        #expect(await harness.ask(.read, 0, 512).map(\.errorCode) == [.inputOutput])
        harness.device.set { $0.failure = { _, _ in nil } }
        #expect(await harness.ask(.read, 0, 512).map(\.errorCode) == [nil])
    }

    // P-SIZE-13, P-SIZE-12, P-CMD-READ-3, P-CMD-READ-7, P-ERR-05
    @Test(arguments: [ReplyMode.structured, .extended])
    func `above the promised maximum comes in chunks of it, and with DF is EOVERFLOW`(mode: ReplyMode) async {
        let harness = EngineHarness(mode, maximumPayload: 65536)
        let replies = await harness.ask(.read, 100, 200_000)
        #expect(replies.map(\.type) == [.offsetData, .offsetData, .offsetData, .offsetData])
        #expect(replies.map { $0.payload.count - 8 } == [65536, 65536, 65536, 3392])
        #expect(replies.flatMap { $0.payload.dropFirst(8) } == Array(harness.device.bytes[100..<200_100]))
        #expect(await harness.ask(.read, 0, 65537, .df).map(\.errorCode) == [.overflow])
        #expect(await harness.ask(.read, 0, 65536, .df).map(\.errorCode) == [nil])
    }

    // S-CMD-01
    @Test func `with FUA flushes first, and a failing flush is the answer`() async {
        let harness = EngineHarness()
        _ = await harness.ask(.read, 0, 512, .fua)
        #expect(harness.device.diary == ["flush", "read 0+512"])
        harness.device.set { $0.failure = { what, _ in what == "flush" ? BlockError(.noSpace, "full") : nil } }
        #expect(await harness.ask(.read, 0, 512, .fua).map(\.errorCode) == [.noSpace])
    }
}

@Suite struct `Commands that answer with a mere success` {
    // S-CMD-28, P-EXT-10, S-NEW-02, P-REP-03, P-REP-06
    @Test(arguments: modes)
    func `are simple, or NONE with extended headers`(mode: ReplyMode) async {
        let harness = EngineHarness(mode)
        let commands: [(Command, UInt64, [UInt8])] = [
            (.write, 512, [UInt8](repeating: 7, count: 512)), (.writeZeroes, 512, []), (.trim, 512, []), (.cache, 512, []), (.flush, 0, []),
        ]
        for (command, length, payload) in commands {
            let replies = await harness.ask(command, 1024, length, payload: payload)
            #expect(replies.map(\.type) == [mode == .extended ? ChunkType.none : nil])
            #expect(replies[0].isDone && replies[0].errorCode == nil)
            if mode == .extended { #expect(replies[0].offset == 1024) }
        }
    }

    // S-CMD-11, P-CMD-WRITE-1, P-ORD-02, S-BLK-07
    @Test(arguments: modes)
    func `WRITE puts the bytes in place, FUA makes them durable`(mode: ReplyMode) async {
        let harness = EngineHarness(mode)
        let data = [UInt8](repeating: 0xEE, count: 1000)
        _ = await harness.ask(.write, 77, payload: data)
        _ = await harness.ask(.write, 5000, .zero, .fua, payload: data)
        #expect(Array(harness.device.bytes[77..<1077]) == data)
        #expect(harness.device.diary == ["write 77+1000", "write 5000+1000 durable"])
    }

    // S-CMD-13
    @Test(arguments: [Command.write, .writeZeroes, .trim, .cache], modes)
    func `of nothing succeed without asking the device`(command: Command, mode: ReplyMode) async {
        let harness = EngineHarness(mode)
        #expect(await harness.ask(command, 512, 0).map(\.errorCode) == [nil])
        #expect(harness.device.diary == [])
    }

    // S-CMD-14, P-CMD-ZERO-1, S-BLK-08, P-FLG-06
    @Test func `WRITE_ZEROES passes its flags down`() async {
        let harness = EngineHarness()
        _ = await harness.ask(.writeZeroes, 0, 4096)
        _ = await harness.ask(.writeZeroes, 0, 4096, [.noHole, .fua])
        _ = await harness.ask(.writeZeroes, 0, 4096, [.fastZero])
        #expect(harness.device.diary == ["zero 0+4096 unmap", "zero 0+4096 durable", "zero 0+4096 unmap fast"])
    }

    // S-CMD-15, P-CMD-ZERO-2, P-CMD-ZERO-3, P-ERR-06, S-ERR-07
    @Test func `ENOTSUP is for FAST_ZERO alone`() async {
        let harness = EngineHarness()
        harness.device.set { $0.failure = { _, _ in BlockError(.unsupported, "not fast") } }
        #expect(await harness.ask(.writeZeroes, 0, 4096, .fastZero).map(\.errorCode) == [.notSupported])
        #expect(await harness.ask(.writeZeroes, 0, 4096).map(\.errorCode) == [.invalid])
        #expect(await harness.ask(.trim, 0, 4096).map(\.errorCode) == [.invalid])
    }

    // S-CMD-17, S-CMD-18, S-BUG-07, P-CMD-TRIM-1
    @Test func `TRIM discards, and with FUA flushes afterwards`() async {
        let harness = EngineHarness()
        _ = await harness.ask(.trim, 0, 4096)
        _ = await harness.ask(.trim, 4096, 4096, .fua)
        #expect(harness.device.diary == ["discard 0+4096", "discard 4096+4096", "flush"])
    }

    // S-CMD-20, S-BUG-20, P-CMD-FLUSH-1, P-CMD-FLUSH-2, S-REQ-12
    @Test(arguments: modes)
    func `FLUSH ignores offset and length`(mode: ReplyMode) async {
        let harness = EngineHarness(mode)
        #expect(await harness.ask(.flush, .max, 0xFFFF_FFFF).map(\.errorCode) == [nil])
        #expect(harness.device.diary == ["flush"])
    }

    // S-CMD-21, S-CMD-22, S-BUG-12, P-CMD-CACHE-1
    @Test func `on a read-only export FLUSH does nothing and CACHE only reads ahead`() async {
        let harness = EngineHarness(device: ScriptedDevice(isReadOnly: true))
        #expect(await harness.ask(.flush).map(\.errorCode) == [nil])
        #expect(await harness.ask(.cache, 0, 1 << 20).map(\.errorCode) == [nil])
        #expect(harness.device.diary == ["prefetch 0+1048576"])
    }

    // S-CMD-27, P-REQ-04
    @Test(arguments: [Command.flush, .cache, .trim, .writeZeroes], modes)
    func `FUA is accepted on every command`(command: Command, mode: ReplyMode) async {
        #expect(await EngineHarness(mode).ask(command, 0, 512, .fua).map(\.errorCode) == [nil])
    }

    // S-CMD-29, S-REP-08, P-REP-07, S-LIM-05, S-REQ-18
    @Test(arguments: [ReplyMode.structured, .extended])
    func `a failure carries a text of bounded length`(mode: ReplyMode) async {
        let harness = EngineHarness(mode)
        harness.device.set { $0.failure = { _, _ in BlockError(.noSpace, String(repeating: "\u{7}é", count: 3000)) } }
        let replies = await harness.ask(.write, 0, payload: [1, 2, 3])
        #expect(replies.map(\.type) == [.error])
        #expect(replies[0].errorCode == .noSpace)
        #expect(replies[0].payload.count < 1000)
        #expect(!replies[0].payload.dropFirst(6).contains(7))
        #expect(replies[0].isDone)
    }
}

@Suite struct `Errors of a device on the wire` {
    // S-ERR-01…06, S-ERR-08…10, P-ERR-01, P-ERR-05, P-ERR-07, P-ERR-08, P-ERR-09, S-BLK-20
    @Test(arguments: [
        (BlockError.Kind.inputOutput, Command.write, NBDError.inputOutput), (.noSpace, .write, .noSpace),
        (.readOnly, .write, .notPermitted),
        (.outOfRange, .write, .noSpace), (.outOfRange, .read, .invalid), (.invalid, .write, .invalid), (.unsupported, .write, .invalid),
        (.tooLarge, .read, .overflow), (.tooLarge, .write, .invalid), (.noMemory, .read, .noMemory), (.shuttingDown, .read, .shutdown),
    ])
    func `each kind has its number`(kind: BlockError.Kind, command: Command, expected: NBDError) async {
        let harness = EngineHarness()
        harness.device.set { $0.failure = { _, _ in BlockError(kind, "") } }
        let payload = command == .write ? [UInt8](repeating: 0, count: 512) : []
        #expect(await harness.ask(command, 0, 512, payload: payload).map(\.errorCode) == [expected])
    }

    // P-ERR-01
    @Test func `no kind is left out`() {
        let known: Set<UInt32> = [1, 5, 12, 22, 28, 75, 95, 108]
        for kind in BlockError.Kind.allCases {
            for command in [Command.read, .write, .trim, .blockStatus] {
                #expect(known.contains(NBDError(BlockError(kind, ""), command: command, isFastZero: true).rawValue))
            }
        }
    }
}

@Suite struct `BLOCK_STATUS` {
    private static func extents(_ reply: WireReply, _ mode: ReplyMode) -> [(UInt64, UInt64)] {
        let width = mode == .extended ? 8 : 4
        var rest = reply.payload.dropFirst(mode == .extended ? 8 : 4)
        var extents: [(UInt64, UInt64)] = []
        while !rest.isEmpty {
            extents.append((number(rest.prefix(width)), number(rest.dropFirst(width).prefix(width))))
            rest = rest.dropFirst(2 * width)
        }
        return extents
    }

    // S-CMD-25, S-REP-07, S-BST-02, S-BST-03, S-BST-05, S-BST-06, S-BST-07, S-NEW-04, P-CMD-BST-1, P-CMD-BST-2, P-CMD-BST-4, P-EXT-11, P-EXT-12, P-META-13
    @Test(arguments: [ReplyMode.structured, .extended])
    func `reports merged extents inside the request`(mode: ReplyMode) async {
        let harness = EngineHarness(mode)
        harness.device.set { $0.extents = [(4096, .data), (4096, .data), (8192, [.hole, .zero]), (0, .data), (4096, .zero)] }
        let replies = await harness.ask(.blockStatus, 1024, 32768)
        #expect(replies.map(\.type) == [mode == .extended ? .blockStatusExtended : .blockStatus])
        #expect(replies[0].isDone)
        let found = Self.extents(replies[0], mode)
        #expect(found.map(\.0) == [7168, 8192, 4096, 13312])
        #expect(found.map(\.1) == [0, 3, 2, 0])
        if mode == .extended { #expect(number(replies[0].payload[4..<8]) == 4) }
    }

    // S-CMD-26, P-CMD-BST-3
    @Test(arguments: [ReplyMode.structured, .extended])
    func `with REQ_ONE reports exactly one extent`(mode: ReplyMode) async {
        let harness = EngineHarness(mode)
        harness.device.set { $0.extents = [(4096, .zero), (4096, .data)] }
        let replies = await harness.ask(.blockStatus, 0, 65536, .reqOne)
        #expect(Self.extents(replies[0], mode).map(\.0) == [4096])
    }

    // S-CVE-23
    @Test(arguments: [ReplyMode.structured, .extended])
    func `reports exactly as much as there is, and refuses one byte more`(mode: ReplyMode) async {
        let harness = EngineHarness(mode)
        harness.device.set { $0.extents = [(4096, .zero)] }
        let replies = await harness.ask(.blockStatus, 0, 1 << 20)
        #expect(Self.extents(replies[0], mode).map(\.0) == [4096, (1 << 20) - 4096])
        let last = await harness.ask(.blockStatus, (1 << 20) - 1, 1)
        #expect(Self.extents(last[0], mode).map(\.0) == [1])
        for (start, count) in [(0, (1 << 20) + 1), (1, 1 << 20), ((1 << 20) - 1, 2)] as [(UInt64, UInt64)] {
            #expect(await harness.ask(.blockStatus, start, count).map(\.errorCode) == [.invalid])
        }
    }

    // S-BST-01, S-BST-04, S-LIM-08, P-CMD-BST-5
    @Test func `stops at 131072 extents`() async {
        let harness = EngineHarness(.structured, device: ScriptedDevice(byteCount: 140_000 * 16))
        harness.device.set { $0.extents = (0..<140_000).map { (16, $0 % 2 == 0 ? .data : .zero) } }
        let replies = await harness.ask(.blockStatus, 0, 140_000 * 16)
        #expect(replies[0].payload.count == 4 + 131_072 * 8)
    }

    // S-CMD-23, S-CMD-24, P-CMD-BST-6
    @Test func `needs a length and a context`() async {
        #expect(await EngineHarness(.structured).ask(.blockStatus, 0, 0).map(\.errorCode) == [.invalid])
        #expect(await EngineHarness(.structured, contexts: []).ask(.blockStatus, 0, 512).map(\.errorCode) == [.invalid])
        #expect(await EngineHarness(.simple).ask(.blockStatus, 0, 512).map(\.errorCode) == [.invalid])
    }

    // S-BST-12, S-BUG-04, P-CMD-BST-7, P-REP-04, S-BST-13
    @Test func `with several contexts sends one chunk each, and after an error nothing more`() async {
        let contexts = [MetaContext.baseAllocation, MetaContext(id: 9, name: "x-test:same")]
        let harness = EngineHarness(.structured, contexts: contexts)
        let good = await harness.ask(.blockStatus, 0, 4096)
        #expect(good.map { number($0.payload.prefix(4)) } == [0, 9])
        #expect(good.map(\.isDone) == [false, true])
        harness.device.set { $0.failure = { what, _ in what == "status" ? BlockError(.inputOutput, "no map") : nil } }
        let bad = await harness.ask(.blockStatus, 0, 4096)
        #expect(bad.map(\.type) == [.error])
        #expect(bad.map(\.isDone) == [true])
    }

    // P-EXT-14, P-EXT-15, P-EXT-16, P-EXT-17, S-NEW-05
    @Test(
        arguments: [
            (bigEndian(UInt64(4096)) + bigEndian(UInt32(9)), nil), (bigEndian(UInt64(4096)), NBDError.invalid),
            (bigEndian(UInt64(4096)) + bigEndian(UInt32(5)), .invalid),
            (bigEndian(UInt64(4096)) + bigEndian(UInt32(9)) + bigEndian(UInt32(9)), .invalid),
            (bigEndian(UInt64(4096)) + [0, 0, 9], .invalid), (bigEndian(UInt64(2 << 20)) + bigEndian(UInt32(9)), .invalid),
            (bigEndian(UInt64(0)) + bigEndian(UInt32(9)), .invalid), ([1, 2, 3], .invalid),
            (bigEndian(UInt64(4096)) + [UInt8](repeating: 0, count: 40), .invalid),
        ] as [([UInt8], NBDError?)])
    func `with a payload reports the contexts it names`(payload: [UInt8], error: NBDError?) async {
        let harness = EngineHarness(.extended, contexts: [.baseAllocation, MetaContext(id: 9, name: "x-test:same")])
        let replies = await harness.ask(.blockStatus, 0, UInt64(payload.count), .payloadLength, payload: payload)
        #expect(replies.count == 1)
        #expect(replies[0].errorCode == error)
        if error == nil { #expect(number(replies[0].payload.prefix(4)) == 9) }
        #expect(await harness.ask(.read, 0, 512).map(\.errorCode) == [nil], "the stream is in step")
    }

    // P-EXT-06, P-EXT-18, P-SIZE-11: effect lengths above 4 GiB
    @Test func `takes 64-bit lengths`() async throws {
        let rules = RequestRules(
            Session(
                export: ExportDescription(id: 1, name: "", byteCount: 1 << 50, flags: []), flags: [.hasFlags, .trim, .writeZeroes],
                mode: .extended, contexts: [.baseAllocation]))
        for command in [Command.blockStatus, .trim, .writeZeroes, .cache] {
            guard case .run(let request) = rules.intake(RequestHeader(command: command, cookie: 0, offset: 1 << 40, length: 1 << 45)) else {
                Issue.record("\(command)")
                continue
            }
            #expect(request.count == 1 << 45)
        }
    }
}
