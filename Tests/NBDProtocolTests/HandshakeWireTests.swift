import Testing

@testable import NBDProtocol

/// The bytes of the handshake as the specification draws them, written by hand.
@Suite struct `Bytes of the handshake` {
    // S-OPT-01, S-OPT-05, P-OPT-12: `C>` 16 bytes of option header; `S>` 20 bytes of reply header and a text.
    @Test func `an option and its refusal are laid out field by field`() {
        var harness = HandshakeHarness()
        harness.begin()
        // C> "IHAVEOPT" 0000002a 00000002 abcd            # option 42, 2 bytes of data
        let reply = harness.send([0x49, 0x48, 0x41, 0x56, 0x45, 0x4F, 0x50, 0x54, 0, 0, 0, 42, 0, 0, 0, 2, 0xAB, 0xCD])
        let text = Array("unsupported option 42".utf8)
        // S> 0003e889045565a9 0000002a 80000001 00000015 "unsupported option 42"
        #expect(reply == [0x00, 0x03, 0xE8, 0x89, 0x04, 0x55, 0x65, 0xA9, 0, 0, 0, 42, 0x80, 0, 0, 1, 0, 0, 0, 21] + text)
    }

    // P-HS-04, P-INFO-13: neither with the agreement nor without.
    @Test(arguments: [1, 3] as [UInt32])
    func `nothing follows GO's ACK`(flags: UInt32) throws {
        var harness = HandshakeHarness()
        harness.begin(flags: flags)
        let replies = harness.option(.go, infoData("disk"))
        #expect(replies.last == .init(option: 7, type: .ack, data: []))
        #expect(harness.session != nil)
    }

    // P-HS-05: before the client has agreed to anything, it is treated as the oldest of its kind.
    @Test func `zeroes are left out only for a client that asked for that`() {
        for (flags, byteCount) in [(0, 134), (1, 134), (2, 10), (3, 10)] as [(UInt32, Int)] {
            var harness = HandshakeHarness()
            harness.begin(flags: flags)
            #expect(harness.send(HandshakeHarness.optionBytes(1, Array("disk".utf8))).count == byteCount, "client flags \(flags)")
        }
    }

    // P-TLS-09: no ACK, and the next option is understood.
    @Test func `STARTTLS with data is invalid`() {
        var harness = HandshakeHarness()
        harness.begin()
        #expect(harness.option(.startTLS, [1, 2, 3]).map(\.type) == [.invalid])
        #expect(harness.option(.list).map(\.type) == [.server, .server, .ack])
    }

    // S-BUG-05, S-INFO-08: the reference once sent none of it.
    @Test func `INFO_NAME carries the whole name`() throws {
        var harness = HandshakeHarness()
        harness.begin()
        let replies = harness.option(.info, infoData("disk", [1, 3]))
        #expect(try #require(replies.first).data == [0, 1] + Array("disk".utf8))
    }

    // S-LIST-07, S-BUG-25: the answer is built from the snapshot that the caller gives, in one call.
    @Test func `LIST shows the exports of one moment`() {
        var harness = HandshakeHarness()
        harness.begin()
        let before = harness.option(.list)
        harness.exports.removeFirst()
        let after = harness.option(.list)
        #expect(before.count == 3 && after.count == 2)
        #expect(Array(before.dropFirst()) == after)
    }

    // P-META-01, P-META-02: names are compared as a whole, whatever they look like; the namespaces of others select nothing.
    @Test(arguments: [
        "base", ":", ":allocation", "base: allocation", "base:allocation:", "BASE:allocation", "nbd-server:x", "x-foo:bar", "base:\u{7F}",
    ])
    func `a name that no context has selects nothing`(query: String) {
        var harness = HandshakeHarness()
        harness.begin()
        _ = harness.option(.structuredReply)
        #expect(harness.option(.setMetaContext, metaData("disk", [query])).map(\.type) == [.ack])
    }

    // P-SIZE-06, P-SIZE-09, P-EXT-20: told to all; binding for those who ask; nobody is refused GO for not asking.
    @Test(arguments: [OptionType.structuredReply, .extendedHeaders])
    func `GO tells block sizes to all and refuses nobody`(mode: OptionType) throws {
        for (types, minimum) in [([], 1), ([3], 512)] as [([UInt16], UInt32)] {
            var harness = HandshakeHarness()
            harness.begin()
            _ = harness.option(mode)
            let replies = harness.option(.go, infoData("blocky", types))
            let sizes = try #require(replies.first { $0.data.starts(with: [0, 3]) })
            #expect(sizes.data == [0, 3] + bigEndian(minimum) + bigEndian(UInt32(65536)) + bigEndian(UInt32(1 << 20)))
            #expect(harness.session != nil)
        }
    }

    // S-CVE-11, S-CVE-13, S-CVE-21: whatever order, every option of every kind of refusal leaves a conversation that can go on.
    @Test func `no order of options traps or ends the conversation`() {
        let options: [(OptionType, [UInt8])] = [
            (.list, []), (.list, [1]), (.startTLS, []), (.info, infoData("gone")), (.info, [0]), (.structuredReply, []),
            (.extendedHeaders, []), (.listMetaContext, metaData("disk")), (.setMetaContext, metaData("disk", ["base:allocation"])),
            (.setMetaContext, [9]), (OptionType(rawValue: 4), []), (OptionType(rawValue: .max), [1, 2]),
        ]
        for first in options {
            for second in options {
                for third in options {
                    var harness = HandshakeHarness()
                    harness.begin()
                    for option in [first, second, third] {
                        let replies = harness.option(option.0, option.1)
                        #expect(replies.allSatisfy { $0.option == option.0.rawValue })
                        #expect(replies.last?.type == .ack || replies.last?.type.isError == true)
                    }
                    #expect(harness.ending == nil)
                }
            }
        }
    }
}
