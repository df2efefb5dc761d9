import Testing

@testable import NBDProtocol

private let secret = ExportDescription(id: 3, name: "secret", byteCount: 4096, flags: [.hasFlags], requiresTLS: true)

private func harness(_ tls: TLSPolicy, limits: HandshakeLimits = HandshakeLimits()) -> HandshakeHarness {
    var harness = HandshakeHarness(exports: [HandshakeHarness.disk, HandshakeHarness.blocky, secret], limits: limits, tls: tls)
    harness.begin()
    return harness
}

@Suite struct `A server that requires TLS` {
    // S-TLS-01, S-TLS-02, P-TLS-05, P-INFO-14: known or unknown, with data or without, in pieces of any size
    @Test(arguments: [3, 4, 6, 7, 8, 9, 10, 11, 77] as [UInt32], [0, 1, 20_000])
    func `answers every option in clear with ERR_TLS_REQD, and stays`(option: UInt32, count: Int) {
        var harness = harness(.required)
        let replies = harness.option(option, [UInt8](repeating: 7, count: count), pieces: 1000)
        #expect(replies.map(\.type) == [.tlsRequired])
        #expect(harness.ending == nil)
        #expect(harness.option(.startTLS).map(\.type) == [.ack])
    }

    // P-TLS-05, S-TLS-02
    @Test func `leaves a client that sends EXPORT_NAME in clear`() {
        var harness = harness(.required)
        #expect(harness.option(.exportName, Array("disk".utf8)).isEmpty)
        #expect(harness.ending == .close(.exportNameRefused("")))
    }

    // S-ABRT-03, S-BUG-24, P-TLS-05
    @Test(arguments: [0, 5]) func `acknowledges ABORT in clear`(count: Int) {
        var harness = harness(.required)
        #expect(harness.option(.abort, [UInt8](repeating: 0, count: count)).map(\.type) == [.ack])
        #expect(harness.ending == .close(nil))
    }

    // S-HS-13, P-TLS-03
    @Test(arguments: [1, 3, 5, 7] as [UInt32]) func `leaves a client without fixed newstyle at its first option`(option: UInt32) {
        var harness = HandshakeHarness(tls: .required)
        harness.begin(flags: 0)
        #expect(harness.option(option).isEmpty)
        guard case .close(.some) = harness.ending else { return #expect(Bool(false), "\(String(describing: harness.ending))") }
    }

    // S-TLS-03, P-TLS-09: all data is read before the answer, so that the answer arrives
    @Test func `refuses STARTTLS with data, and leaves`() {
        var harness = harness(.required)
        #expect(harness.option(OptionType.startTLS.rawValue, [1, 2, 3], pieces: 1).map(\.type) == [.invalid])
        #expect(harness.ending == .close(.dataInClearWithStartTLS))
        let isStartingTLS = harness.isStartingTLS
        #expect(!isStartingTLS)
    }

    // S-TLS-04, P-TLS-06: what comes behind STARTTLS is left to whoever must throw it away
    @Test func `acknowledges STARTTLS and takes nothing more in clear`() {
        var harness = harness(.required)
        let reply = harness.send(HandshakeHarness.optionBytes(5, []) + HandshakeHarness.optionBytes(3, []))
        #expect(HandshakeHarness.Reply.parse(reply).map(\.type) == [.ack])
        let (isStartingTLS, left) = (harness.isStartingTLS, harness.inbox)
        #expect(isStartingTLS)
        #expect(left == HandshakeHarness.optionBytes(3, []))
    }

    // S-TLS-05, P-TLS-07
    @Test func `is like any other once TLS is up, but for STARTTLS`() {
        var harness = harness(.required)
        harness.option(.startTLS)
        harness.encrypt()
        #expect(harness.option(.startTLS).map(\.type) == [.invalid])
        #expect(harness.option(.startTLS, [1]).map(\.type) == [.invalid])
        #expect(harness.option(OptionType(rawValue: 77)).map(\.type) == [.unsupported])
        #expect(harness.option(.list).count == 4)
        #expect(harness.option(.info, infoData("nope")).map(\.type) == [.unknown])
        #expect(harness.option(.go, infoData("secret")).last?.type == .ack)
        #expect(harness.session?.export.name == "secret")
    }

    // S-TLS-01, P-TLS-02: neither asks for TLS, and STARTTLS in a shutdown is refused like all else
    @Test func `refuses STARTTLS while it shuts down`() {
        var harness = harness(.required)
        harness.handshake.shutDown()
        #expect(harness.option(.startTLS).map(\.type) == [.shutdown])
    }

    // S-TRC-14
    @Test func `can be watched`() {
        let events = Events()
        var harness = HandshakeHarness(tls: .required, trace: { events.append($0.name) })
        harness.begin()
        harness.option(.startTLS)
        #expect(events.names.contains("nbd_negotiate_handle_starttls"))
        #expect(events.names.contains("nbd_negotiate_handle_starttls_handshake"))
    }
}

@Suite struct `A server that may encrypt` {
    // S-SR-05, P-OPT-11, P-TLS-10, P-EXT-05, S-CVE-22: CVE-2021-3716 of nbdkit
    @Test(arguments: [OptionType.structuredReply, .extendedHeaders])
    func `forgets what was agreed on in clear`(agreement: OptionType) {
        var harness = harness(.optional)
        #expect(harness.option(agreement).map(\.type) == [.ack])
        #expect(harness.option(.setMetaContext, metaData("disk", ["base:allocation"])).last?.type == .ack)
        harness.option(.startTLS)
        harness.encrypt()
        // Not "already agreed on", and no contexts without an agreement.
        #expect(harness.option(.setMetaContext, metaData("disk", ["base:allocation"])).map(\.type) == [.invalid])
        #expect(harness.option(agreement).map(\.type) == [.ack])
        harness.option(.go, infoData("disk"))
        #expect(harness.session?.contexts == [])
    }

    // S-SR-05: the session is the one that was agreed on in TLS
    @Test func `speaks in simple replies when nothing was agreed on since`() {
        var harness = harness(.optional)
        harness.option(.structuredReply)
        harness.option(.startTLS)
        harness.encrypt()
        harness.option(.go, infoData("disk"))
        #expect(harness.session?.mode == .simple)
        #expect(harness.session?.flags.contains(.df) == false)
    }

    // S-OPT-10: STARTTLS is no way to begin counting anew
    @Test func `goes on counting options`() {
        var limits = HandshakeLimits()
        limits.optionCountLimit = 3
        var harness = harness(.optional, limits: limits)
        harness.option(.structuredReply)
        harness.option(.startTLS)
        harness.encrypt()
        #expect(harness.option(.structuredReply).map(\.type) == [.ack])
        harness.option(.structuredReply)
        #expect(harness.ending == .close(.tooManyOptions))
    }

    // P-TLS-08: what needs TLS and what is not there at all look the same
    @Test(arguments: [OptionType.info, .go], ["secret", "nope"])
    func `hides in clear what requires TLS`(option: OptionType, name: String) {
        var harness = harness(.optional)
        let replies = harness.option(option, infoData(name, [1, 2, 3]))
        #expect(replies.map(\.type) == [.tlsRequired])
        #expect(replies.first?.text == "export '\(name)' is not here without TLS: send STARTTLS first")
        #expect(harness.ending == nil)
    }

    // P-TLS-08: ERR_TLS_REQD is for INFO and GO alone
    @Test(arguments: [OptionType.listMetaContext, .setMetaContext])
    func `has no contexts in clear for what requires TLS`(option: OptionType) {
        var harness = harness(.optional)
        harness.option(.structuredReply)
        #expect(harness.option(option, metaData("secret")).map(\.type) == [.unknown])
        #expect(harness.option(OptionType(rawValue: 77)).map(\.type) == [.unsupported])
    }

    // P-TLS-08, P-OPT-07
    @Test func `does not list in clear what requires TLS`() {
        var harness = harness(.optional)
        #expect(harness.option(.list).filter { $0.type == .server }.map { String($0.text.dropFirst(4)) } == ["diska disk", "blocky"])
        harness.option(.startTLS)
        harness.encrypt()
        #expect(harness.option(.list).count == 4)
    }

    // P-TLS-08, P-TLS-03
    @Test func `leaves a client that opens in clear by EXPORT_NAME what requires TLS`() {
        for flags: UInt32 in [0, 3] {
            var harness = HandshakeHarness(exports: [HandshakeHarness.disk, secret], tls: .optional)
            harness.begin(flags: flags)
            harness.send(HandshakeHarness.optionBytes(1, Array("secret".utf8)))
            #expect(harness.ending == .close(.exportNameRefused("secret")))
        }
    }

    // P-TLS-02, P-TLS-03
    @Test func `serves the rest in clear, also to clients of old`() {
        for flags: UInt32 in [0, 3] {
            var harness = harness(.optional)
            if flags == 0 {
                harness = HandshakeHarness(tls: .optional)
                harness.begin(flags: 0)
            }
            harness.send(HandshakeHarness.optionBytes(1, Array("disk".utf8)))
            #expect(harness.session?.export.name == "disk")
        }
    }
}

@Suite struct `A server without TLS` {
    // P-TLS-04: defence in depth; NBDServer does not start like that
    @Test func `never has what requires it, and never asks for it`() {
        var harness = harness(.off)
        #expect(harness.option(.go, infoData("secret")).map(\.type) == [.unknown])
        #expect(harness.option(.list).count == 3)
        #expect(harness.option(.startTLS).map(\.type) == [.policy])
    }
}

@Suite struct `Transcript of an upgrade` {
    private static let clear = Transcript(
        """
        S> 4e42444d 41474943 49484156 454f5054 0003   # greeting
        C> 00000003
        C> 49484156 454f5054 00000003 00000000   # LIST
        S> 0003e889 045565a9 00000003 80000005 00000027 6f707469 6f6e2033 206e6565   # ERR_TLS_REQD
        S> 64732054 4c533a20 73656e64 20535441 5254544c 53206669 727374
        C> 49484156 454f5054 00000005 00000000   # STARTTLS
        S> 0003e889 045565a9 00000005 00000001 00000000   # ACK; TLS begins behind it
        """)
    private static let encrypted = Transcript(
        """
        C> 49484156 454f5054 00000005 00000000   # STARTTLS, again
        S> 0003e889 045565a9 00000005 80000003 00000015 544c5320 69732061 6c726561   # ERR_INVALID
        S> 64792069 6e207573 65
        C> 49484156 454f5054 00000002 00000000   # ABORT
        S> 0003e889 045565a9 00000002 00000001 00000000   # ACK
        """)

    // S-TLS-04, S-TLS-05: the same however it is cut
    @Test(arguments: [1, 3, 16, 1000]) func `is answered byte for byte`(pieces: Int) {
        var harness = HandshakeHarness(tls: .required)
        harness.send(Self.clear.bytes(ofClient: true), pieces: pieces)
        #expect(harness.output == Self.clear.bytes(ofClient: false))
        harness.output = []
        harness.encrypt()
        harness.send(Self.encrypted.bytes(ofClient: true), pieces: pieces)
        #expect(harness.output == Self.encrypted.bytes(ofClient: false))
        #expect(harness.ending == .close(nil))
    }
}

/// Names of events, from wherever they come.
private final class Events: @unchecked Sendable {
    var names: [String] = []
    func append(_ name: String) { names.append(name) }
}
