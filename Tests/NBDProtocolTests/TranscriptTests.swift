import Testing

@testable import NBDProtocol

/// A conversation as it was on the wire: `C>` from the client, `S>` from the server, in hex, with comments.
struct Transcript {
    /// What one side says before it waits for the other.
    struct Turn {
        var isClient: Bool
        var bytes: [UInt8]
    }
    private(set) var turns: [Turn] = []

    init(_ text: String) {
        for line in text.split(separator: "\n") {
            let words = line.prefix { $0 != "#" }.split(separator: " ")
            guard let side = words.first else { continue }
            let digits = words.dropFirst().joined()
            let bytes = stride(from: 0, to: digits.count, by: 2).compactMap { UInt8(digits.dropFirst($0).prefix(2), radix: 16) }
            let isClient = side == "C>"
            if let last = turns.indices.last, turns[last].isClient == isClient {
                turns[last].bytes += bytes
            } else {
                turns.append(Turn(isClient: isClient, bytes: bytes))
            }
        }
    }

    func bytes(ofClient: Bool) -> [UInt8] { turns.filter { $0.isClient == ofClient }.flatMap(\.bytes) }
}

@Suite struct `Transcript of a handshake` {
    private static let transcript = Transcript(
        """
        S> 4e42444d 41474943 49484156 454f5054 0003   # greeting: FIXED_NEWSTYLE, NO_ZEROES
        C> 00000003   # both taken
        C> 49484156 454f5054 00000008 00000000   # STRUCTURED_REPLY
        S> 0003e889 045565a9 00000008 00000001 00000000   # ACK
        C> 49484156 454f5054 0000004d 00000003 010203   # option 77, unknown, with data
        S> 0003e889 045565a9 0000004d 80000001 00000015 756e7375 70706f72 74656420   # ERR_UNSUP
        S> 6f707469 6f6e2037 37
        C> 49484156 454f5054 00000003 00000000   # LIST
        S> 0003e889 045565a9 00000003 00000002 0000000e 00000004 6469736b 61206469   # SERVER disk
        S> 736b
        S> 0003e889 045565a9 00000003 00000002 0000000a 00000006 626c6f63 6b79   # SERVER blocky
        S> 0003e889 045565a9 00000003 00000001 00000000   # ACK
        C> 49484156 454f5054 00000009 00000024 00000006 626c6f63 6b790000 00010000   # LIST_META_CONTEXT blocky, qemu:dirty-bitmap:
        C> 00127165 6d753a64 69727479 2d626974 6d61703a
        S> 0003e889 045565a9 00000009 00000004 00000018 00000000 71656d75 3a646972   # META_CONTEXT
        S> 74792d62 69746d61 703a6230
        S> 0003e889 045565a9 00000009 00000004 00000018 00000000 71656d75 3a646972   # META_CONTEXT
        S> 74792d62 69746d61 703a6231
        S> 0003e889 045565a9 00000009 00000001 00000000   # ACK
        C> 49484156 454f5054 0000000a 0000001f 00000004 6469736b 00000001 0000000f   # SET_META_CONTEXT disk, base:allocation
        C> 62617365 3a616c6c 6f636174 696f6e
        S> 0003e889 045565a9 0000000a 00000004 00000013 00000000 62617365 3a616c6c   # META_CONTEXT, id 0
        S> 6f636174 696f6e
        S> 0003e889 045565a9 0000000a 00000001 00000000   # ACK
        C> 49484156 454f5054 00000006 0000000a 00000004 6e6f7065 0000   # INFO nope
        S> 0003e889 045565a9 00000006 80000006 00000019 6578706f 72742027 6e6f7065   # ERR_UNKNOWN
        S> 27206973 206e6f74 20686572 65
        C> 49484156 454f5054 00000007 0000000e 00000004 6469736b 00020001 0003   # GO disk, asks for NAME and BLOCK_SIZE
        S> 0003e889 045565a9 00000007 00000003 00000006 00016469 736b   # INFO NAME
        S> 0003e889 045565a9 00000007 00000003 00000008 00026120 6469736b   # INFO DESCRIPTION
        S> 0003e889 045565a9 00000007 00000003 0000000e 00030000 00010000 10000200   # INFO BLOCK_SIZE
        S> 0000
        S> 0003e889 045565a9 00000007 00000003 0000000c 00000000 00000010 00000ded   # INFO EXPORT, with DF
        S> 0003e889 045565a9 00000007 00000001 00000000   # ACK: transmission begins
        """)

    // S-OPT-01, S-OPT-05, S-OPT-12, P-GEN-04: as the reference server's client would have it, turn by turn
    @Test func `is answered byte for byte`() {
        var harness = HandshakeHarness()
        var seen = harness.output
        var said: [UInt8] = []
        for turn in Self.transcript.turns {
            if turn.isClient { seen += harness.send(turn.bytes) } else { said += turn.bytes }
            #expect(seen.count >= said.count && Array(seen.prefix(said.count)) == said)
        }
        #expect(seen == said)
        #expect(harness.session?.contexts == [.baseAllocation])
    }

    // S-OPT-01: cut at every byte, in pieces of every size
    @Test func `is answered the same however it is cut`() {
        let client = Self.transcript.bytes(ofClient: true)
        let server = Self.transcript.bytes(ofClient: false)
        for cut in 0...client.count {
            var harness = HandshakeHarness()
            harness.send(Array(client.prefix(cut)))
            harness.send(Array(client.dropFirst(cut)))
            #expect(harness.output == server, "cut at \(cut)")
            #expect(harness.session?.export.name == "disk", "cut at \(cut)")
        }
        for size in 1...20 {
            var harness = HandshakeHarness()
            harness.send(client, pieces: size)
            #expect(harness.output == server, "pieces of \(size)")
        }
    }

    // S-CLI-04, S-HS-08: a client that stops anywhere has chosen nothing
    @Test func `chooses nothing before its last byte`() {
        let client = Self.transcript.bytes(ofClient: true)
        for count in 0..<client.count {
            var harness = HandshakeHarness()
            harness.send(Array(client.prefix(count)))
            #expect(harness.ending == nil, "after \(count)")
        }
    }
}
