import NBDProtocol
import Testing

@Suite struct `A client that requires TLS` {
    private static let greeting = bigEndian(Magic.initial) + bigEndian(Magic.option) + bigEndian(UInt16(3))

    private static func reply(_ option: OptionType, _ type: OptionReplyType, _ data: [UInt8] = []) -> [UInt8] {
        bigEndian(Magic.optionReply) + bigEndian(option.rawValue) + bigEndian(type.rawValue) + bigEndian(UInt32(data.count)) + data
    }

    private static func start(_ bytes: [UInt8], sent: inout [UInt8]) throws -> (ClientHandshake.Action, left: Int) {
        var handshake = ClientHandshake(.init(requiresTLS: true))
        let (consumed, action) = try handshake.receive(bytes.span.bytes, output: &sent)
        return (action, bytes.count - consumed)
    }

    // P-URI-01, P-TLS-10: nothing that an attacker between could change is agreed on in clear
    @Test func `asks for nothing else in clear`() throws {
        var sent: [UInt8] = []
        let (action, _) = try Self.start(Self.greeting, sent: &sent)
        #expect(action == .read)
        #expect(sent == bigEndian(UInt32(3)) + HandshakeHarness.optionBytes(5, []))
    }

    @Test func `negotiates once TLS is up`() throws {
        var handshake = ClientHandshake(.init(requiresTLS: true))
        var sent: [UInt8] = []
        let bytes = Self.greeting + Self.reply(.startTLS, .ack)
        let (consumed, action) = try handshake.receive(bytes.span.bytes, output: &sent)
        #expect(consumed == bytes.count)
        #expect(action == .startTLS)
        let isReady = handshake.isReady
        #expect(!isReady)
        sent = []
        #expect(handshake.tlsStarted(output: &sent) == .read)
        #expect(sent == HandshakeHarness.optionBytes(11, []))
        let agreed = Self.reply(.extendedHeaders, .ack)
        #expect(try handshake.receive(agreed.span.bytes, output: &sent).action == .ready)
    }

    // P-TLS-04
    @Test(arguments: [OptionReplyType.policy, .unsupported, .platform])
    func `leaves a server that refuses`(refusal: OptionReplyType) {
        var sent: [UInt8] = []
        let told = RefusedOption(option: .startTLS, reply: refusal, text: "no")
        #expect(throws: HandshakeError.tlsRefused(told)) {
            try Self.start(Self.greeting + Self.reply(.startTLS, refusal, Array("no".utf8)), sent: &sent)
        }
    }

    // P-TLS-03
    @Test func `leaves a server that is too old`() {
        var sent: [UInt8] = []
        let newstyle = bigEndian(Magic.initial) + bigEndian(Magic.option) + bigEndian(UInt16(0))
        #expect(throws: HandshakeError.needsFixedNewstyle(.startTLS)) { try Self.start(newstyle, sent: &sent) }
        let oldstyle = bigEndian(Magic.initial) + bigEndian(Magic.oldstyle) + [UInt8](repeating: 0, count: 136)
        #expect(throws: HandshakeError.needsFixedNewstyle(.startTLS)) { try Self.start(oldstyle, sent: &sent) }
    }

    // P-TLS-11: a reply in clear behind the ACK would be taken for one that TLS protects
    @Test func `leaves a server whose ACK is followed by bytes in clear`() throws {
        var handshake = ClientHandshake(.init(requiresTLS: true))
        var sent: [UInt8] = []
        var bytes = Self.greeting + Self.reply(.startTLS, .ack) + Self.reply(.extendedHeaders, .ack)
        bytes.removeFirst(try handshake.receive(bytes.span.bytes, output: &sent).consumed)
        var error: HandshakeError?
        do { _ = try handshake.receive(bytes.span.bytes, output: &sent) } catch let thrown { error = thrown }
        #expect(error == .dataInClear)
    }
}
