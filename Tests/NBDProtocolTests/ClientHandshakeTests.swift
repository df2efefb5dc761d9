import NBDProtocol
import Testing

/// What a server sends, from parts.
private struct Server {
    var bytes: [UInt8] = []

    static func greeting(_ flags: HandshakeFlags = [.fixedNewstyle, .noZeroes]) -> Server {
        var server = Server()
        server.bytes.appendBigEndian(Magic.initial)
        server.bytes.appendBigEndian(Magic.option)
        server.bytes.appendBigEndian(flags.rawValue)
        return server
    }

    func reply(
        _ option: OptionType, _ type: OptionReplyType, _ data: [UInt8] = [], magic: UInt64 = Magic.optionReply, length: UInt32? = nil
    ) -> Server {
        var copy = self
        copy.bytes.appendBigEndian(magic)
        copy.bytes.appendBigEndian(option.rawValue)
        copy.bytes.appendBigEndian(type.rawValue)
        copy.bytes.appendBigEndian(length ?? UInt32(data.count))
        copy.bytes += data
        return copy
    }

    func adding(_ more: [UInt8]) -> Server {
        var copy = self
        copy.bytes += more
        return copy
    }
}

private func big<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.appendBigEndian(value)
    return bytes
}

private func exportInfo(_ size: UInt64 = 1 << 20, _ flags: TransmissionFlags = [.hasFlags, .flush]) -> [UInt8] {
    big(InfoType.export.rawValue) + big(size) + big(flags.rawValue)
}

private func blockSizes(_ minimum: UInt32, _ preferred: UInt32, _ maximum: UInt32) -> [UInt8] {
    big(InfoType.blockSize.rawValue) + big(minimum) + big(preferred) + big(maximum)
}

private func listed(_ name: String, _ text: String = "") -> [UInt8] { big(UInt32(name.utf8.count)) + name.utf8 + text.utf8 }

/// Everything a run of the handshake showed: actions, bytes sent, and the error if one ended it.
private struct Run: Equatable {
    var actions: [ClientHandshake.Action] = []
    var sent: [UInt8] = []
    var error: HandshakeError?
    var left = 0
}

/// Feeds `bytes` in the given pieces, and begins the requests whenever the handshake is ready.
private func run(
    _ server: Server, _ requests: [ClientHandshake.Request] = [], _ configuration: ClientHandshake.Configuration = .init(),
    cuts: [Int] = []
) -> Run {
    var handshake = ClientHandshake(configuration)
    var result = Run()
    var requests = requests[...]
    var inbox: [UInt8] = []
    var position = 0
    for end in cuts + [server.bytes.count] {
        inbox += server.bytes[position..<end]
        position = end
        var isReading = false
        while !isReading {
            do {
                let (consumed, action) = try handshake.receive(inbox.rawSpan, output: &result.sent)
                inbox.removeFirst(consumed)
                if case .read = action { isReading = true } else { result.actions.append(action) }
                if case .transmit = action {
                    result.left = inbox.count + server.bytes.count - position
                    return result
                }
                if handshake.isReady, let request = requests.popFirst() { try handshake.begin(request, output: &result.sent) }
            } catch {
                result.error = error
                return result
            }
        }
    }
    return result
}

private let simple = ClientHandshake.Configuration(maximumMode: .simple)

@Suite struct `Client handshake` {
    /// extended refused, structured agreed, list, contexts, selection, info, GO
    private static let transcript = Server.greeting()
        .reply(.extendedHeaders, .unsupported, Array("what?".utf8))
        .reply(.structuredReply, .ack)
        .reply(.list, .server, listed("disk", "a disk")).reply(.list, .server, listed("")).reply(.list, .ack)
        .reply(.listMetaContext, .metaContext, big(UInt32(0)) + "base:allocation".utf8).reply(.listMetaContext, .ack)
        .reply(.setMetaContext, .metaContext, big(UInt32(7)) + "base:allocation".utf8).reply(.setMetaContext, .ack)
        .reply(.info, .unknown, Array("no \u{1B} such".utf8))
        .reply(.go, .info, big(InfoType.name.rawValue) + "disk".utf8)
        .reply(.go, .info, blockSizes(1, 4096, 1 << 25))
        .reply(.go, .info, big(UInt16(0xF00D)) + [1, 2, 3])
        .reply(.go, .info, exportInfo())
        .reply(.go, .info, big(InfoType.description.rawValue) + "a disk".utf8)
        .reply(.go, .ack)
        .adding([9, 9, 9])
    private static let requests: [ClientHandshake.Request] = [
        .list, .listMetaContexts(export: "", queries: []), .setMetaContexts(export: "", queries: ["base:allocation"]), .info(export: "x"),
        .go(export: ""),
    ]

    @Test func `leads through all options to a session`() {  // P-HS-09, P-OPT-06, P-INFO-01, P-INFO-04, P-META-10
        let run = run(Self.transcript, Self.requests)
        let info = ExportInfo(
            name: "disk", text: "a disk", byteCount: 1 << 20, flags: [.hasFlags, .flush],
            blockSizes: BlockSizes(minimum: 1, preferred: 4096, maximumPayload: 1 << 25))
        #expect(
            run.actions == [
                .ready, .completed(.exports([ListedExport(name: "disk", text: "a disk"), ListedExport(name: "")])),
                .completed(.contexts([MetaContext(id: 0, name: "base:allocation")])),
                .completed(.contexts([MetaContext(id: 7, name: "base:allocation")])),
                .completed(.refused(RefusedOption(option: .info, reply: .unknown, text: "no ? such"))),
                .transmit(ClientSession(info: info, mode: .structured, contexts: [MetaContext(id: 7, name: "base:allocation")])),
            ])
        #expect(run.error == nil)
        #expect(run.left == 3, "what follows belongs to the transmission phase")
        let opened = big(ClientFlags([.fixedNewstyle, .noZeroes]).rawValue) + big(Magic.option) + big(OptionType.extendedHeaders.rawValue)
        #expect(run.sent.starts(with: opened))
    }

    @Test func `goes the same way wherever the bytes are cut`() {
        let whole = run(Self.transcript, Self.requests)
        for cut in 0...Self.transcript.bytes.count { #expect(run(Self.transcript, Self.requests, cuts: [cut]) == whole, "cut at \(cut)") }
        #expect(run(Self.transcript, Self.requests, cuts: Array(0...Self.transcript.bytes.count)) == whole)
    }

    @Test func `asks for everything in one GO`() {  // P-INFO-02
        let run = run(Server.greeting(), [.go(export: "ab")], simple)
        let data = big(UInt32(2)) + "ab".utf8 + big(UInt16(3)) + big(UInt16(1)) + big(UInt16(2)) + big(UInt16(3))
        #expect(run.sent == big(UInt32(3)) + big(Magic.option) + big(OptionType.go.rawValue) + big(UInt32(data.count)) + data)
    }

    @Test(arguments: [(ReplyMode.extended, OptionType.extendedHeaders), (.structured, .structuredReply)])
    func `takes the best mode that the server acknowledges`(mode: ReplyMode, option: OptionType) {  // P-EXT-01, P-OPT-10
        let go = Server.greeting().reply(option, .ack).reply(.go, .info, exportInfo()).reply(.go, .ack)
        let run = run(go, [.go(export: "x")], .init(maximumMode: mode))
        let info = ExportInfo(name: "x", byteCount: 1 << 20, flags: [.hasFlags, .flush])
        #expect(run.actions == [.ready, .transmit(ClientSession(info: info, mode: mode, contexts: []))])
    }

    @Test(arguments: [true, false])
    func `falls back to EXPORT_NAME, with and without zeroes`(noZeroes: Bool) {  // P-OPT-01, P-HS-03
        let answer = big(UInt64(99)) + big(UInt16(1)) + [UInt8](repeating: 0, count: noZeroes ? 0 : 124)
        let server = Server.greeting(noZeroes ? [.fixedNewstyle, .noZeroes] : [.fixedNewstyle])
            .reply(.go, .unsupported).adding(answer).adding([5])
        let run = run(server, [.go(export: "x")], simple)
        #expect(run.left == 1)
        #expect(
            run.actions.last
                == .transmit(ClientSession(info: ExportInfo(name: "x", byteCount: 99, flags: .hasFlags), mode: .simple, contexts: [])))
        #expect(run.sent.suffix(17) == big(Magic.option) + big(UInt32(1)) + big(UInt32(1)) + "x".utf8)
    }

    @Test func `may leave the zeroes in although the server would spare them`() {  // P-HS-03
        let server = Server.greeting().adding(big(UInt64(99)) + big(UInt16(1)) + [UInt8](repeating: 0, count: 124))
        let run = run(server, [.exportName("x")], .init(maximumMode: .simple, asksNoZeroes: false))
        #expect(run.sent.prefix(4) == [0, 0, 0, 1])
        #expect(run.left == 0 && run.actions.count == 2)
    }

    @Test func `knows only EXPORT_NAME with a server that is not fixed newstyle`() {  // P-HS-08
        let server = Server.greeting([]).adding(big(UInt64(99)) + big(UInt16(1)) + [UInt8](repeating: 0, count: 124))
        #expect(
            run(server, [.go(export: "x")]).actions.last
                == .transmit(
                    ClientSession(info: ExportInfo(name: "x", byteCount: 99, flags: .hasFlags), mode: .simple, contexts: [])))
        #expect(run(server, [.list]).error == .needsFixedNewstyle(.list))
    }

    @Test func `understands an oldstyle server`() {  // P-HS-13
        let server = Server(
            bytes: big(Magic.initial) + big(Magic.oldstyle) + big(UInt64(5)) + big(UInt32(3)) + [UInt8](repeating: 0, count: 124))
        let run = run(server.adding([1]))
        #expect(
            run.actions == [
                .transmit(
                    ClientSession(info: ExportInfo(name: "", byteCount: 5, flags: [.hasFlags, .readOnly]), mode: .simple, contexts: []))
            ])
        #expect(run.sent.isEmpty && run.left == 1)
    }

    @Test func `forgets a selection made for another export`() {  // P-META-12
        let server = Server.greeting().reply(.structuredReply, .ack)
            .reply(.setMetaContext, .metaContext, big(UInt32(1)) + "base:allocation".utf8).reply(.setMetaContext, .ack)
            .reply(.go, .info, exportInfo()).reply(.go, .ack)
        let run = run(
            server, [.setMetaContexts(export: "a", queries: ["base:allocation"]), .go(export: "b")], .init(maximumMode: .structured))
        guard case .transmit(let session)? = run.actions.last else {
            Issue.record("\(run)")
            return
        }
        #expect(session.contexts.isEmpty)
    }

    @Test func `forgets a selection when a later one fails`() {  // P-META-11
        let server = Server.greeting().reply(.structuredReply, .ack)
            .reply(.setMetaContext, .metaContext, big(UInt32(1)) + "base:allocation".utf8).reply(.setMetaContext, .ack)
            .reply(.setMetaContext, .tooBig)
            .reply(.go, .info, exportInfo()).reply(.go, .ack)
        let set = ClientHandshake.Request.setMetaContexts(export: "a", queries: ["base:allocation"])
        let run = run(server, [set, set, .go(export: "a")], .init(maximumMode: .structured))
        guard case .transmit(let session)? = run.actions.last else {
            Issue.record("\(run)")
            return
        }
        #expect(session.contexts.isEmpty)
    }

    @Test func `ends with ABORT`() {  // P-OPT-04
        #expect(run(Server.greeting().reply(.abort, .ack), [.abort], simple).actions == [.ready, .close])
    }

    @Test func `passes raw options through`() {
        let option = OptionType(rawValue: 77)
        let server = Server.greeting().reply(option, .server, [1]).reply(option, .invalid, [2])
        let replies = [RawOptionReply(type: .server, data: [1]), RawOptionReply(type: .invalid, data: [2])]
        #expect(run(server, [.raw(option, data: [5])], simple).actions == [.ready, .completed(.raw(replies))])
    }

    @Test(arguments: [
        (Server(bytes: Array("SSH-2.0-OpenSSH_9.2p1\r\n".utf8)), HandshakeError.notAnNBDServer(0x5353_482D_322E_302D)),
        (Server(bytes: big(Magic.initial) + big(UInt64(1)) + [0, 0]), .notAnNBDServer(1)),
        (Server.greeting().reply(.go, .ack, magic: 5), .badReplyMagic(5)),
        (Server.greeting().reply(.info, .ack), .wrongOption(asked: .go, answered: .info)),
        (Server.greeting().reply(.go, .ack), .badReply("ACK without INFO EXPORT")),
        (Server.greeting().reply(.go, .ack, [0]), .badReply("ACK of GO with data")),
        (Server.greeting().reply(.go, .server, listed("a")), .unexpectedReply(.go, .server)),
        (Server.greeting().reply(.go, OptionReplyType(rawValue: 99), []), .unexpectedReply(.go, OptionReplyType(rawValue: 99))),
        (Server.greeting().reply(.go, .info, length: 16_385), .replyTooLong(.go, byteCount: 16_385)),
        (Server.greeting().reply(.go, .info, length: .max), .replyTooLong(.go, byteCount: .max)),
        (Server.greeting().reply(.go, .info, []), .badReply("INFO cut short")),
        (Server.greeting().reply(.go, .info, exportInfo().dropLast()), .badReply("INFO cut short")),
        (Server.greeting().reply(.go, .info, exportInfo() + [0]), .badReply("INFO EXPORT too long")),
        (Server.greeting().reply(.go, .info, exportInfo()).reply(.go, .info, exportInfo()), .badReply("INFO EXPORT twice")),
        (Server.greeting().reply(.go, .info, exportInfo(1, [])), .badTransmissionFlags(0)),
        (Server.greeting().reply(.go, .info, big(UInt16(1)) + [0xFF]), .badReply("INFO with text that is not UTF-8 or too long")),
        (Server.greeting().reply(.go, .info, blockSizes(1, 4096, 4096) + [0]), .badReply("INFO BLOCK_SIZE too long")),
        (Server.greeting().reply(.go, .info, blockSizes(0, 4096, 4096)), .badReply("block sizes 0, 4096, 4096")),
        (Server.greeting().reply(.go, .info, blockSizes(131072, 131072, .max)), .badReply("block sizes 131072, 131072, 4294967295")),
        (Server.greeting().reply(.go, .info, blockSizes(1, 256, .max)), .badReply("block sizes 1, 256, 4294967295")),
        (Server.greeting().reply(.go, .info, blockSizes(1024, 512, .max)), .badReply("block sizes 1024, 512, 4294967295")),
        (Server.greeting().reply(.go, .info, blockSizes(1, 4096, 4095)), .badReply("block sizes 1, 4096, 4095")),
    ])
    private func `notices a server that breaks the rules`(server: Server, error: HandshakeError) {
        // P-HS-02, P-HS-09, P-INFO-03, P-INFO-06, P-INFO-09, P-FLG-01, P-FLG-09, P-GEN-01, P-SIZE-01, P-SIZE-02, P-SIZE-03
        #expect(run(server, [.go(export: "x")], simple).error == error)
    }

    @Test func `notices lists and contexts that lie about their lengths`() {  // P-OPT-08
        let lie = big(UInt32(5)) + "four".utf8
        #expect(run(Server.greeting().reply(.list, .server, lie), [.list], simple).error == .badReply("SERVER cut short"))
        #expect(run(Server.greeting().reply(.list, .server, big(UInt32.max)), [.list], simple).error == .badReply("SERVER cut short"))
        let request = ClientHandshake.Request.setMetaContexts(export: "", queries: [])
        let twice = Server.greeting().reply(.structuredReply, .ack).reply(.setMetaContext, .metaContext, big(UInt32(1)) + "a:b".utf8)
            .reply(.setMetaContext, .metaContext, big(UInt32(1)) + "a:c".utf8)
        #expect(run(twice, [request], .init(maximumMode: .structured)).error == .badReply("context 'a:c' with id 1 twice"))
    }

    @Test func `gives up on answers without end`() {  // P-HS-12
        var configuration = simple
        configuration.limits.replyCountLimit = 3
        var server = Server.greeting()
        for _ in 0..<3 { server = server.reply(.list, .server, listed("x")) }
        #expect(run(server, [.list], configuration).error == nil)
        #expect(run(server.reply(.list, .ack), [.list], configuration).error == .tooManyReplies(.list))
    }

    @Test func `refuses GO that is unknown to a server with extended headers`() {  // P-EXT-02
        let server = Server.greeting().reply(.extendedHeaders, .ack).reply(.go, .unsupported)
        #expect(run(server, [.go(export: "x")]).error == .unexpectedReply(.go, .unsupported))
    }

    @Test func `notices bytes nobody asked for`() {  // P-HS-11
        #expect(run(Server.greeting().reply(.list, .ack), [], simple).error == .unexpectedBytes)
    }

    @Test func `tells during what the server closed`() throws {  // P-OPT-02
        var handshake = ClientHandshake(simple)
        let early = handshake.endOfInput()
        #expect(early == .closed(during: "the greeting"))
        var output: [UInt8] = []
        let greeting = Server.greeting().bytes
        _ = try handshake.receive(greeting.rawSpan, output: &output)
        try handshake.begin(.list, output: &output)
        let late = handshake.endOfInput()
        #expect(late == .closed(during: "LIST"))
    }

    @Test func `refuses what cannot be asked, and stays usable`() throws {  // P-GEN-01
        var handshake = ClientHandshake(simple)
        var output: [UInt8] = []
        #expect(throws: HandshakeError.notReady) { try handshake.begin(.list, output: &output) }
        let greeting = Server.greeting().bytes
        _ = try handshake.receive(greeting.rawSpan, output: &output)
        #expect(throws: HandshakeError.badName) { try handshake.begin(.go(export: "a\0b"), output: &output) }
        #expect(throws: HandshakeError.badName) { try handshake.begin(.go(export: String(repeating: "x", count: 4097)), output: &output) }
        try handshake.begin(.list, output: &output)
        #expect(throws: HandshakeError.notReady) { try handshake.begin(.list, output: &output) }
    }

    @Test func `survives any bytes from a server`() {
        var random = SeededRandom()
        for _ in 0..<3000 {
            var server = Self.transcript
            for _ in 0..<Int.random(in: 1...4, using: &random) {
                let index = Int.random(in: 0..<server.bytes.count, using: &random)
                server.bytes[index] = [0, 1, 0x7F, 0x80, 0xFF, server.bytes[index] ^ 1].randomElement(using: &random) ?? 0
            }
            let cut = Int.random(in: 0...server.bytes.count, using: &random)
            #expect(run(server, Self.requests, cuts: [cut]) == run(server, Self.requests), "seed \(random.seed)")
        }
    }
}
