import Testing

@testable import NBDProtocol

private typealias Harness = HandshakeHarness

@Suite struct `Greeting and client flags` {
    // S-HS-01, S-HS-02, S-HS-03, P-HS-01, P-HS-02, P-HS-03
    @Test func `the server speaks first, with both handshake flags`() {
        let harness = Harness()
        #expect(harness.output == Array("NBDMAGICIHAVEOPT".utf8) + [0, 3])
    }

    // S-HS-10, P-HS-06
    @Test(arguments: [4, 8, 0x8000_0000, 7] as [UInt32])
    func `an unknown client flag closes`(flags: UInt32) {
        var harness = Harness()
        harness.send(bigEndian(flags))
        #expect(harness.ending == .close(.unknownClientFlags(flags)))
    }

    // S-HS-12, P-HS-08
    @Test(arguments: [2, 3, 5, 6, 7, 8, 99] as [UInt32])
    func `a client without fixed newstyle may only send EXPORT_NAME`(option: UInt32) {
        var harness = Harness()
        harness.begin(flags: 0)
        #expect(harness.option(option).isEmpty)
        #expect(harness.ending == .close(.optionBeforeFixedNewstyle(OptionType(rawValue: option))))
    }

    // S-HS-12, S-EXPN-05, S-EXPN-10, P-OPT-01
    @Test func `a client without fixed newstyle gets 134 bytes for EXPORT_NAME`() {
        var harness = Harness()
        harness.begin(flags: 0)
        let answer = harness.send(Harness.optionBytes(1, Array("disk".utf8)))
        #expect(answer == bigEndian(UInt64(1 << 20)) + bigEndian(UInt16(0x0D6D)) + [UInt8](repeating: 0, count: 124))
        #expect(harness.session?.mode == .simple)
    }
}

@Suite struct `Option loop` {
    // S-OPT-02, P-HS-15
    @Test func `a wrong option magic closes`() {
        var harness = Harness()
        harness.begin()
        harness.send(Array("IHAVEOPS".utf8))
        #expect(harness.ending == .close(.badOptionMagic(0x4948_4156_454F_5053)))
    }

    // S-OPT-03, S-CVE-05, P-OPT-17
    @Test func `an option above 32 MiB closes without a reply`() {
        var harness = Harness()
        harness.begin()
        #expect(harness.send(Array("IHAVEOPT".utf8) + bigEndian(UInt32(99)) + bigEndian(UInt32(32 << 20) + 1)).isEmpty)
        #expect(harness.ending == .close(.optionTooLong(OptionType(rawValue: 99), byteCount: (32 << 20) + 1)))
    }

    // S-OPT-08, S-OPT-09, S-LIM-12, P-HS-10, P-GEN-04
    @Test(arguments: [0, 4, 12, 999, UInt32.max], [0, 1, 70_000])
    func `an unknown option is drained in pieces and refused, and the next one is understood`(option: UInt32, count: Int) {
        var harness = Harness()
        harness.begin()
        let replies = harness.option(option, [UInt8](repeating: 0xAA, count: count), pieces: 1000)
        #expect(replies.map(\.type) == [.unsupported])
        #expect(replies.first?.option == option)
        #expect(harness.option(.list).last?.type == .ack)
    }

    // S-OPT-03, P-OPT-17, S-LIM-03
    @Test func `an INFO of a megabyte is drained and refused as too big, and the next one is understood`() {
        var harness = Harness()
        harness.begin()
        let replies = harness.option(6, [UInt8](repeating: 0, count: 1 << 20), pieces: 65536)
        #expect(replies.map(\.type) == [.tooBig])
        #expect(harness.option(.info, infoData("disk")).last?.type == .ack)
    }

    // S-OPT-10, S-NEW-06
    @Test func `the number of options is limited`() {
        var limits = HandshakeLimits()
        limits.optionCountLimit = 3
        var harness = Harness(limits: limits)
        harness.begin()
        for _ in 0..<3 { #expect(harness.option(99).count == 1) }
        #expect(harness.option(99).isEmpty)
        #expect(harness.ending == .close(.tooManyOptions))
    }

    // S-OPT-10
    @Test func `after LIST there are eight more options for each export, once`() {
        var limits = HandshakeLimits()
        limits.optionCountLimit = 2
        var harness = Harness(limits: limits)
        harness.begin()
        #expect(harness.option(.list).last?.type == .ack)
        #expect(harness.option(.list).last?.type == .ack)
        for _ in 0..<16 { #expect(harness.option(99).count == 1) }
        _ = harness.option(99)
        #expect(harness.ending == .close(.tooManyOptions))
    }

    // S-OPT-12, P-HS-09, P-HS-11
    @Test func `pipelined options are answered one after the other`() {
        var harness = Harness()
        harness.begin()
        let bytes = Harness.optionBytes(8, []) + Harness.optionBytes(99, [1, 2, 3]) + Harness.optionBytes(3, [])
        #expect(Harness.Reply.parse(harness.send(bytes)).map(\.type) == [.ack, .unsupported, .server, .server, .ack])
    }

    // S-OPT-11, P-OPT-13, P-TERM-06, P-OPT-15
    @Test func `while stopping every option but ABORT gets ERR_SHUTDOWN`() {
        var harness = Harness()
        harness.begin()
        harness.handshake.shutDown()
        #expect(harness.option(.list).map(\.type) == [.shutdown])
        #expect(harness.option(.go, infoData("disk")).map(\.type) == [.shutdown])
        #expect(harness.option(99, [1]).map(\.type) == [.shutdown])
        #expect(harness.option(.abort).map(\.type) == [.ack])
        #expect(harness.ending == .close(nil))
    }
}

@Suite struct `EXPORT_NAME` {
    // S-EXPN-02, P-OPT-02
    @Test func `an unknown name closes`() {
        var harness = Harness()
        harness.begin()
        #expect(harness.send(Harness.optionBytes(1, Array("nope".utf8))).isEmpty)
        #expect(harness.ending == .close(.exportNameRefused("nope")))
    }

    // S-EXPN-01, S-LIM-02, S-CVE-15
    @Test func `a name above 4096 bytes closes before it is read`() {
        var harness = Harness()
        harness.begin()
        harness.send(Array("IHAVEOPT".utf8) + bigEndian(UInt32(1)) + bigEndian(UInt32(4097)))
        #expect(harness.ending == .close(.optionTooLong(.exportName, byteCount: 4097)))
    }

    // S-EXPN-03, S-BUG-19
    @Test(arguments: [Array("disk".utf8) + [0], Array("disk".utf8) + [0xFF]])
    func `a name with NUL or invalid UTF-8 is unknown`(name: [UInt8]) {
        var harness = Harness()
        harness.begin()
        harness.send(Harness.optionBytes(1, name))
        guard case .close(.exportNameRefused) = harness.ending else { return #expect(Bool(false), "\(String(describing: harness.ending))") }
    }

    // S-EXPN-04, P-OPT-03
    @Test func `the empty name is looked up as it is`() {
        var export = Harness.disk
        export.name = ""
        var harness = Harness(exports: [export])
        harness.begin()
        harness.send(Harness.optionBytes(1, []))
        #expect(harness.session?.export.id == 1)
    }

    // S-EXPN-05, S-EXPN-06, S-HS-09, P-HS-03, S-SR-04, P-FLG-04
    @Test func `with NO_ZEROES the answer has ten bytes, and DF once structured replies are agreed`() {
        var harness = Harness()
        harness.begin()
        _ = harness.option(.structuredReply)
        #expect(harness.send(Harness.optionBytes(1, Array("disk".utf8))) == bigEndian(UInt64(1 << 20)) + bigEndian(UInt16(0x0DED)))
        #expect(harness.session?.mode == .structured)
    }

    // S-EXPN-10, P-EXT-02, S-NEW-01
    @Test func `after extended headers it closes`() {
        var harness = Harness()
        harness.begin()
        _ = harness.option(.extendedHeaders)
        #expect(harness.send(Harness.optionBytes(1, Array("disk".utf8))).isEmpty)
        #expect(harness.ending == .close(.exportNameRefused("disk")))
    }

    // S-EXPN-08, P-META-12, S-META-26, S-BUG-14
    @Test func `contexts chosen for another export are forgotten`() {
        var harness = Harness()
        harness.begin()
        _ = harness.option(.structuredReply)
        _ = harness.option(.setMetaContext, metaData("blocky", ["base:allocation"]))
        harness.send(Harness.optionBytes(1, Array("disk".utf8)))
        #expect(harness.session?.contexts == [])
    }
}

@Suite struct `LIST and ABORT` {
    // S-LIST-02, S-LIST-03, S-LIST-04, P-OPT-06, P-OPT-08
    @Test func `shows every export in order with its description`() {
        var harness = Harness()
        harness.begin()
        let replies = harness.option(.list)
        #expect(replies.map(\.type) == [.server, .server, .ack])
        #expect(replies[0].data == counted("disk") + Array("a disk".utf8))
        #expect(replies[1].data == counted("blocky"))
        #expect(replies[2].data.isEmpty)
    }

    // S-LIST-04
    @Test func `without exports there is just ACK`() {
        var harness = Harness(exports: [])
        harness.begin()
        #expect(harness.option(.list).map(\.type) == [.ack])
    }

    // S-LIST-01
    @Test func `LIST with data is refused and drained`() {
        var harness = Harness()
        harness.begin()
        #expect(harness.option(3, [1, 2, 3], pieces: 1).map(\.type) == [.invalid])
        #expect(harness.option(.list).last?.type == .ack)
    }

    // S-LIST-06, P-OPT-07
    @Test func `a server that does not list answers ERR_POLICY`() {
        var harness = Harness(isListable: false)
        harness.begin()
        #expect(harness.option(.list).map(\.type) == [.policy])
        #expect(harness.option(.info, infoData("disk")).last?.type == .ack)
    }

    // S-ABRT-01, S-ABRT-02, P-OPT-04, P-OPT-05, P-TERM-01
    @Test(arguments: [[], [1, 2, 3]] as [[UInt8]])
    func `ABORT is answered and ends cleanly, whatever its data`(data: [UInt8]) {
        var harness = Harness()
        harness.begin()
        let header = Array(Harness.optionBytes(2, data).prefix(16))  // the data may never come
        #expect(Harness.Reply.parse(harness.send(header)).map(\.type) == [.ack])
        #expect(harness.ending == .close(nil))
    }
}

@Suite struct `INFO and GO` {
    // S-INFO-01, S-INFO-08, S-INFO-09, S-INFO-10, S-INFO-14, S-INFO-15, S-INFO-18, P-INFO-01, P-INFO-03, P-INFO-06, P-INFO-08, P-INFO-13, P-INFO-15
    @Test func `GO answers in the reference order and enters transmission without padding`() {
        var harness = Harness()
        harness.begin()
        let replies = harness.option(.go, infoData("disk", [1, 3]))
        #expect(replies.map(\.type) == [.info, .info, .info, .info, .ack])
        #expect(replies[0].data == [0, 1] + Array("disk".utf8))
        #expect(replies[1].data == [0, 2] + Array("a disk".utf8))
        #expect(replies[2].data == [0, 3] + bigEndian(UInt32(1)) + bigEndian(UInt32(4096)) + bigEndian(UInt32(32 << 20)))
        #expect(replies[3].data == [0, 0] + bigEndian(UInt64(1 << 20)) + bigEndian(UInt16(0x0D6D)))
        #expect(replies[4].data.isEmpty)
        #expect(harness.session?.export == Harness.disk)
    }

    // S-INFO-06, S-INFO-08, P-INFO-04, P-INFO-05, P-INFO-07
    @Test func `the name is sent only if asked for, unknown and repeated requests are ignored`() {
        var harness = Harness()
        harness.begin()
        let replies = harness.option(.info, infoData("disk", [3, 3, 77, 0]))
        #expect(replies.map { $0.data.prefix(2) } == [[0, 2], [0, 3], [0, 0], []])
    }

    // S-INFO-08: an alias gives the name that LIST shows
    @Test func `an alias is answered with the canonical name`() {
        var handshake = ServerHandshake()
        var output: [UInt8] = []
        _ = handshake.receive(bigEndian(UInt32(3)).span.bytes, output: &output)
        _ = handshake.receive(HandshakeHarness.optionBytes(6, infoData("", [1])).span.bytes, output: &output)
        _ = handshake.answer(HandshakeHarness.disk, output: &output)
        #expect(HandshakeHarness.Reply.parse(output).first?.data == [0, 1] + Array("disk".utf8))
    }

    // S-INFO-11, S-INFO-12, S-INFO-13, S-INFO-17, P-SIZE-07, P-INFO-09
    @Test func `a minimum block is told to those who ask, and to everybody by INFO`() {
        func minimum(_ option: OptionType, _ types: [UInt16]) -> UInt64? {
            var harness = Harness()
            harness.begin()
            let reply = harness.option(option, infoData("blocky", types)).first { $0.data.prefix(2) == [0, 3] }
            return reply.map { number($0.data[2..<6]) }
        }
        #expect(minimum(.go, []) == 1)
        #expect(minimum(.go, [3]) == 512)
        #expect(minimum(.info, []) == 512)
    }

    // S-INFO-16, P-INFO-11, P-INFO-12, S-INFO-22
    @Test func `INFO without BLOCK_SIZE is refused when blocks matter, after all infos`() {
        var harness = Harness()
        harness.begin()
        #expect(harness.option(.info, infoData("blocky")).map(\.type) == [.info, .info, .blockSizeRequired])
        #expect(harness.option(.info, infoData("blocky", [3])).map(\.type) == [.info, .info, .ack])
        #expect(harness.option(.info, infoData("disk")).last?.type == .ack)
        #expect(harness.option(.go, infoData("blocky")).last?.type == .ack)
    }

    // S-INFO-07, S-LIM-06, P-INFO-10, S-OPT-07, S-CVE-06, P-GEN-06, S-BUG-22
    @Test func `an unknown export is refused without infos, its name cut and cleaned`() {
        var harness = Harness()
        harness.begin()
        let name = "\u{1B}[31m" + String(repeating: "x", count: 4091)
        let replies = harness.option(.go, infoData(name))
        #expect(replies.map(\.type) == [.unknown])
        #expect(replies[0].data.count < 200)
        #expect(!replies[0].data.contains(0x1B))
        #expect(harness.ending == nil)
    }

    // S-INFO-02, S-INFO-03, S-INFO-04, S-INFO-05, S-CVE-04, S-CVE-16, P-INFO-02, S-OPT-04, P-OPT-16
    @Test(
        arguments: [
            [],
            bigEndian(UInt32(0)),
            bigEndian(UInt32(0)) + [0],
            bigEndian(UInt32(4097)),
            bigEndian(UInt32(257)) + [UInt8](repeating: 0x61, count: 100),
            bigEndian(UInt32.max) + [0, 0],
            counted("disk"),
            counted("di\0k") + [0, 0],
            bigEndian(UInt32(1)) + [0xFF, 0, 0],
            counted("disk") + [0, 1],
            counted("disk") + [0, 0, 9],
            counted("disk") + [0, 1, 0, 3, 0],
            counted("disk") + [0xFF, 0xFF, 0, 3],
        ] as [[UInt8]], [OptionType.info, .go])
    func `malformed data is refused and the next option is understood`(data: [UInt8], option: OptionType) {
        var harness = Harness()
        harness.begin()
        #expect(harness.option(option, data).map(\.type) == [.invalid])
        #expect(harness.option(.go, infoData("disk")).last?.type == .ack)
    }

    // S-INFO-21, S-NEW-15, P-FLG-08, S-NEW-05
    @Test func `the payload filter of BLOCK_STATUS is offered with extended headers when contexts are selected`() {
        func flags(select: Bool, _ option: OptionType) -> UInt64 {
            var harness = Harness()
            harness.begin()
            _ = harness.option(.extendedHeaders)
            if select { _ = harness.option(.setMetaContext, metaData("disk", ["base:allocation"])) }
            return number(harness.option(option, infoData("disk")).first { $0.data.count == 12 }?.data.suffix(2) ?? [])
        }
        #expect(flags(select: false, .go) == 0x0DED)
        #expect(flags(select: true, .go) == 0x1DED)
        #expect(flags(select: false, .info) == 0x1DED)
    }
}

@Suite struct `Agreements` {
    // S-SR-01, S-SR-02, S-SR-03, P-OPT-10, P-OPT-14
    @Test func `structured replies are agreed once and take no data`() {
        var harness = Harness()
        harness.begin()
        #expect(harness.option(.structuredReply, [1]).map(\.type) == [.invalid])
        #expect(harness.option(.structuredReply).map(\.type) == [.ack])
        #expect(harness.option(.structuredReply).map(\.type) == [.invalid])
        _ = harness.option(.go, infoData("disk"))
        #expect(harness.session?.mode == .structured)
    }

    // P-EXT-01, P-EXT-03, P-EXT-04, S-NEW-01, S-CVE-21
    @Test(arguments: [true, false])
    func `extended headers need no structured replies, take no data and exclude a step back`(afterStructured: Bool) {
        var harness = Harness()
        harness.begin()
        if afterStructured { _ = harness.option(.structuredReply) }
        #expect(harness.option(.extendedHeaders, [0]).map(\.type) == [.invalid])
        #expect(harness.option(.extendedHeaders).map(\.type) == [.ack])
        #expect(harness.option(.extendedHeaders).map(\.type) == [.invalid])
        #expect(harness.option(.structuredReply).map(\.type) == [.extendedHeadersRequired])
        _ = harness.option(.go, infoData("disk"))
        #expect(harness.session?.mode == .extended)
        #expect(harness.session?.flags.contains(.df) == true)
    }

    // S-TLS-06, P-TLS-04
    @Test func `STARTTLS without credentials is refused by policy, and nothing ever asks for TLS`() {
        var harness = Harness()
        harness.begin()
        #expect(harness.option(.startTLS).map(\.type) == [.policy])
        #expect(harness.option(.startTLS, [1, 2]).map(\.type) == [.invalid])
        #expect(harness.option(.list).last?.type == .ack)
    }
}

@Suite struct `Metadata contexts` {
    private static func names(_ replies: [HandshakeHarness.Reply]) -> [String] {
        replies.filter { $0.type == .metaContext }.map { String(decoding: $0.data.dropFirst(4), as: UTF8.self) }
    }

    // S-META-03, S-META-10, S-META-20, S-META-21, P-META-04, P-META-05, P-META-08
    @Test func `LIST without queries shows everything, before structured replies too, with id 0`() {
        var harness = Harness()
        harness.begin()
        let replies = harness.option(.listMetaContext, metaData("blocky"))
        #expect(Self.names(replies) == ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0", "qemu:dirty-bitmap:b1"])
        #expect(replies.allSatisfy { $0.type == .ack || $0.data.prefix(4) == [0, 0, 0, 0] })
        #expect(replies.last?.type == .ack)
    }

    // S-META-12…18, P-META-03, P-META-06, P-META-07
    @Test(
        arguments: [
            (["base:"], ["base:allocation"], []),
            (["base:allocation"], ["base:allocation"], ["base:allocation"]),
            (["base:allocation2", "base:alloc", "Base:allocation", " base:allocation"], [], []),
            (["qemu:"], ["qemu:allocation-depth", "qemu:dirty-bitmap:b0", "qemu:dirty-bitmap:b1"], []),
            (["qemu:allocation-depth"], ["qemu:allocation-depth"], ["qemu:allocation-depth"]),
            (["qemu:dirty-bitmap:"], ["qemu:dirty-bitmap:b0", "qemu:dirty-bitmap:b1"], []),
            (["qemu:dirty-bitmap:b1"], ["qemu:dirty-bitmap:b1"], ["qemu:dirty-bitmap:b1"]),
            (["qemu:dirty-bitmap:b"], [], []),
            (["", "*", "base", "x-other:thing", "nbd-server:"], [], []),
            (
                ["qemu:dirty-bitmap:b1", "base:allocation", "base:allocation"], ["base:allocation", "qemu:dirty-bitmap:b1"],
                ["base:allocation", "qemu:dirty-bitmap:b1"]
            ),
        ] as [([String], [String], [String])])
    func `queries match as the reference server does`(queries: [String], listed: [String], selected: [String]) {
        var harness = Harness()
        harness.begin()
        _ = harness.option(.structuredReply)
        #expect(Self.names(harness.option(.listMetaContext, metaData("blocky", queries))) == listed)
        let replies = harness.option(.setMetaContext, metaData("blocky", queries))
        #expect(Self.names(replies) == selected)
        #expect(replies.last?.type == .ack)
        _ = harness.option(.go, infoData("blocky", [3]))
        #expect(harness.session?.contexts.map(\.name) == selected)
    }

    // S-META-16, S-META-17: the name of a bitmap may end with a colon, which is no wildcard
    @Test func `colons in the names of bitmaps mean nothing`() {
        let export = ExportDescription(
            id: 9, name: "colons", byteCount: 1 << 20, flags: [.hasFlags],
            contexts: ["base:allocation", "qemu:dirty-bitmap:a:", "qemu:dirty-bitmap:a:b"].enumerated().map {
                MetaContext(id: UInt32($0.offset), name: $0.element)
            })
        var harness = Harness(exports: [export])
        harness.begin()
        #expect(Self.names(harness.option(.listMetaContext, metaData("colons", ["qemu:dirty-bitmap:a:"]))) == ["qemu:dirty-bitmap:a:"])
        #expect(Self.names(harness.option(.listMetaContext, metaData("colons", ["qemu:dirty-bitmap:"]))).count == 2)
        #expect(Self.names(harness.option(.listMetaContext, metaData("colons", ["qemu:"]))).count == 2)
    }

    // S-META-15: offered only by exports that have it
    @Test func `an export without allocation depth does not select it`() {
        var harness = Harness()
        harness.begin()
        _ = harness.option(.structuredReply)
        #expect(harness.option(.setMetaContext, metaData("disk", ["qemu:allocation-depth"])).map(\.type) == [.ack])
    }

    // S-META-19, S-META-21, S-META-22, P-META-10, P-EXT-13
    @Test func `SET gives each context its id`() {
        var harness = Harness()
        harness.begin()
        _ = harness.option(.extendedHeaders)
        let replies = harness.option(.setMetaContext, metaData("blocky", ["qemu:dirty-bitmap:b0", "base:allocation"]))
        #expect(replies.map { $0.data.prefix(4) } == [[0, 0, 0, 0], [0, 0, 0, 2], []])
    }

    // S-META-11, P-META-10
    @Test func `SET without queries selects nothing`() {
        var harness = Harness()
        harness.begin()
        _ = harness.option(.structuredReply)
        _ = harness.option(.setMetaContext, metaData("disk", ["base:allocation"]))
        #expect(harness.option(.setMetaContext, metaData("disk")).map(\.type) == [.ack])
        _ = harness.option(.go, infoData("disk"))
        #expect(harness.session?.contexts == [])
    }

    // S-META-02, P-META-09, S-BUG-15
    @Test func `SET before structured replies is refused`() {
        var harness = Harness()
        harness.begin()
        #expect(harness.option(.setMetaContext, metaData("disk", ["base:allocation"])).map(\.type) == [.invalid])
        _ = harness.option(.structuredReply)
        _ = harness.option(.go, infoData("disk"))
        #expect(harness.session?.contexts == [])
    }

    // S-META-04, P-META-11: each way to fail
    @Test(arguments: [
        metaData("nope", ["base:allocation"]), metaData("disk", ["base:allocation"]) + [0], [], [0, 0, 0],
        counted("disk") + bigEndian(UInt32(1)) + bigEndian(UInt32(400)),
        [0xFF],  // stands for 300 KiB of zeroes: arguments are printed
    ])
    func `a SET that fails leaves nothing selected`(data: [UInt8]) {
        let data = data == [0xFF] ? [UInt8](repeating: 0, count: 300 << 10) : data
        var harness = Harness()
        harness.begin()
        _ = harness.option(.structuredReply)
        _ = harness.option(.setMetaContext, metaData("disk", ["base:allocation"]))
        #expect(harness.option(.setMetaContext, data).last?.type.isError == true)
        _ = harness.option(.go, infoData("disk"))
        #expect(harness.session?.contexts == [])
    }

    // S-META-05
    @Test func `LIST does not touch the selection`() {
        var harness = Harness()
        harness.begin()
        _ = harness.option(.structuredReply)
        _ = harness.option(.setMetaContext, metaData("disk", ["base:allocation"]))
        _ = harness.option(.listMetaContext, metaData("disk", ["nothing:at-all"]))
        _ = harness.option(.listMetaContext, [1])
        _ = harness.option(.go, infoData("disk"))
        #expect(harness.session?.contexts == [.baseAllocation])
    }

    // S-META-06, S-META-08, S-META-09, S-META-25, S-BUG-01, S-CVE-08
    @Test(
        arguments: [
            ([], OptionReplyType.invalid),
            (counted("disk"), .invalid),
            (counted("di\0k") + bigEndian(UInt32(0)), .invalid),
            (bigEndian(UInt32(4097)), .invalid),
            (metaData("disk", ["a\0b"]), .invalid),
            (counted("disk") + bigEndian(UInt32(2)) + counted("base:"), .invalid),
            (counted("disk") + bigEndian(UInt32(1)) + bigEndian(UInt32(4097)) + [1], .invalid),
            (metaData("disk", ["base:"]) + [0], .invalid),
            (metaData("nope"), .unknown),
            (counted("disk") + bigEndian(UInt32(1025)), .tooBig),
            (counted("disk") + bigEndian(UInt32.max), .tooBig),
        ] as [([UInt8], OptionReplyType)], [OptionType.listMetaContext, .setMetaContext])
    func `bad data is refused and the next option is understood`(data: (bytes: [UInt8], answer: OptionReplyType), option: OptionType) {
        var harness = Harness()
        harness.begin()
        _ = harness.option(.structuredReply)
        #expect(harness.option(option, data.bytes).map(\.type) == [data.answer])
        #expect(harness.option(.list).last?.type == .ack)
    }

    // S-META-08, S-META-24
    @Test func `a query above 4096 bytes is skipped, and 1024 queries are allowed`() {
        var harness = Harness()
        harness.begin()
        let long = String(repeating: "q", count: 4097)
        #expect(harness.option(.listMetaContext, metaData("disk", [long, "base:"])).map(\.type) == [.metaContext, .ack])
        #expect(harness.option(.listMetaContext, metaData("disk", [String](repeating: "x:", count: 1024))).map(\.type) == [.ack])
    }

    // S-META-01, S-META-07
    @Test func `an unknown export is named in the refusal, cut at 80 characters`() {
        var harness = Harness()
        harness.begin()
        let reply = harness.option(.listMetaContext, metaData(String(repeating: "n", count: 500)))[0]
        #expect(reply.type == .unknown)
        #expect(reply.text.contains(String(repeating: "n", count: 80) + "..."))
    }
}

// S-HS-04, P-HS-13
@Suite struct `Oldstyle greeting` {
    @Test func `is 152 bytes of size and flags`() {
        let bytes = oldstyleGreeting(for: HandshakeHarness.disk)
        #expect(bytes.count == 152)
        var head = Array("NBDMAGIC".utf8) + bigEndian(UInt64(0x0000_4202_8186_1253))
        head += bigEndian(UInt64(1 << 20))
        head += bigEndian(UInt32(0x0D6D))
        #expect(Array(bytes.prefix(28)) == head)
        #expect(bytes.dropFirst(28).allSatisfy { $0 == 0 })
    }
}
