import ArgumentParser
import NBDClient
import NBDProtocol
import TestPeers
import Testing

@testable import NBDTool

private let hasPeers = ["nbdinfo", "nbdkit", "qemu-nbd"].allSatisfy(Peer.isInstalled)

/// JSON without the white space between its tokens.
private func minified(_ text: String) -> String {
    var result = ""
    var isInString = false
    var isEscaped = false
    for character in text {
        if isInString || !character.isWhitespace { result.append(character) }
        if isEscaped {
            isEscaped = false
        } else if isInString, character == "\\" {
            isEscaped = true
        } else if character == "\"" {
            isInString.toggle()
        }
    }
    return result
}

@Suite(.enabled(if: hasPeers, "nbdinfo, nbdkit or qemu-nbd is not installed")) struct `nbd info against nbdinfo` {
    /// Servers that differ in what they tell; the export to ask for.
    static let servers: [(name: String, export: String, start: @Sendable () -> Peer?)] = [
        ("qemu-nbd", "disk", { Peer.qemuNBD() }),
        ("qemu-nbd, read-only", "a b", { Peer.qemuNBD("-r -x 'a b'", image: "truncate -s 1025 image") }),
        ("nbdkit", "", { Peer.nbdkit("memory 5M") }),
        (
            "nbdkit, rotational", "",
            { Peer.nbdkit("--filter=blocksize-policy data '1 @1536 2' blocksize-minimum=512 blocksize-preferred=4096") }
        ),
        ("nbdkit, read-only", "", { Peer.nbdkit("-r null 1P") }),
        ("nbdkit, simple replies", "", { Peer.nbdkit("--no-sr memory 1023") }),
        ("nbdkit, newstyle", "", { Peer.nbdkit("--mask-handshake=0 memory 1M") }),
        ("nbdkit, oldstyle", "", { Peer.nbdkit("--oldstyle memory 1M") }),
        ("nbdkit, no size", "", { Peer.nbdkit("null 0") }),
        (
            "nbdkit, another name", "",
            { Peer.nbdkit("--filter=exportname memory 1M exportname=foo default-export=foo exportdesc=fixed:\"a 'b'\"") }
        ),
    ]

    @Test(arguments: servers.indices)
    func `prints the same`(index: Int) async throws {
        let (name, export, start) = Self.servers[index]
        let peer = try #require(start(), "\(name)")
        let uri = peer.uri(export)
        let report = try await InfoReport.one(uri, .init())
        #expect(report.text == Peer.output("nbdinfo --no-content '\(uri)'"), "\(name)")
        let json = try #require(Peer.output("nbdinfo --no-content --json '\(uri)'"))
        #expect(minified(report.json.text).replacing("\"extended\":false,", with: "") == minified(json), "\(name)")
    }

    @Test func `lists the same`() async throws {
        for start in [{ Peer.qemuNBD() }, { Peer.nbdkit("memory 5M") }, { Peer.nbdkit("file dir=/usr/share/common-licenses") }] {
            let peer = try #require(start())
            let report = try await InfoReport.all(peer.uri("whatever"), .init())
            let ours = Set(report.text.split(separator: "\n"))
            let theirs = try #require(Peer.output("nbdinfo --list '\(peer.uri(""))'"))
            #expect(ours == Set(theirs.split(separator: "\n")))
        }
    }

    @Test func `maps the same`() async throws {
        let image = "truncate -s 10M image && printf hello | dd of=image conv=notrunc bs=1 seek=1M status=none"
        let peer = try #require(Peer.qemuNBD("-x disk -A", image: image))
        let uri = peer.uri("disk")
        for context in ["base:allocation", "qemu:allocation-depth"] {
            let map = try await InfoMap.fetch(uri, .init(), context: context)
            #expect(map.text(totals: false) == Peer.output("nbdinfo --map=\(context) '\(uri)'"))
            #expect(map.text(totals: true) == Peer.output("nbdinfo --map=\(context) --totals '\(uri)'"))
            #expect(minified(map.json(totals: false).text) == minified(Peer.output("nbdinfo --map=\(context) --json '\(uri)'") ?? ""))
        }
        let error = await #expect(throws: InfoFailure.self) { try await InfoMap.fetch(uri, .init(), context: "no:such") }
        #expect(error?.description == "the server does not support metadata context 'no:such'")
    }

    @Test(arguments: [
        "cache", "connect", "df", "fast-zero", "flush", "fua", "multi-conn", "read", "read-only", "rotational", "structured-reply", "tls",
        "trim",
        "write", "zero",
    ])
    func `answers the same`(ability: String) async throws {
        for start in [{ Peer.qemuNBD() }, { Peer.nbdkit("-r null 1M") }, { Peer.nbdkit("--no-sr null 1M") }] {
            let peer = try #require(start())
            let uri = peer.uri("disk")
            let report = try await InfoReport.one(uri, .init())
            let answer = InfoReport.ability(ability, report.exports[0].info, report.mode)
            #expect((answer == true ? "0" : "2") == Peer.output("nbdinfo --can \(ability) '\(uri)'; echo $?"))
        }
    }

    @Test func `says what is wrong in one line`() async throws {
        let peer = try #require(Peer.qemuNBD())
        let refusal = await #expect(throws: RefusedOption.self) { try await InfoReport.one(peer.uri("nope"), .init()) }
        #expect(refusal?.description.hasPrefix("the server refused INFO: ERR_UNKNOWN (") == true)
        await #expect(throws: (any Error).self) { try await InfoReport.one(NBDURI(.unix(path: "/nonexistent/socket")), .init()) }
    }
}

@Suite struct `nbd info` {
    @Test(arguments: [
        (0, "0"), (1, "1"), (1023, "1023"), (1024, "1K"), (1025, "1025"), (1536, "1536"), (1_572_864, "1536K"), (1 << 20, "1M"),
        (1 << 30, "1G"),
        (3 << 40, "3T"), (1 << 50, "1P"), (1 << 62, "4E"), (UInt64.max, "18446744073709551615"),
    ])
    func `shows a size in the largest unit that divides it`(byteCount: UInt64, text: String) {
        #expect(InfoReport.humanSize(byteCount) == text)
    }

    @Test func `takes the URI also after --map`() throws {
        for arguments in [
            ["--map", "nbd://h"], ["nbd://h", "--map"], ["--map=base:allocation", "nbd://h"], ["--map", "--totals", "nbd://h"],
        ] {
            let command = try InfoCommand.parse(arguments)
            #expect(command.map == "base:allocation" && command.uri == "nbd://h", "\(arguments)")
        }
        #expect(try InfoCommand.parse(["nbd://h"]).map == nil)
        #expect(try InfoCommand.parse(["--map=qemu:x", "nbd://h"]).map == "qemu:x")
    }

    @Test(arguments: [[], ["--map"], ["--size", "--can", "trim", "nbd://h"], ["--totals", "nbd://h"], ["nbd://h", "nbd://i"], ["--can"]])
    func `refuses arguments that make no sense`(arguments: [String]) {
        #expect(throws: (any Error).self) { try InfoCommand.parse(arguments) }
    }

    @Test func `joins neighbours of equal status`() {
        var map = InfoMap("base:allocation")
        for (count, status) in [(10, 0), (20, 0), (5, 3), (1, 0)] as [(UInt64, UInt64)] { map.append(count, status) }
        #expect(
            map.entries == [
                .init(offset: 0, byteCount: 30, status: 0), .init(offset: 30, byteCount: 5, status: 3),
                .init(offset: 35, byteCount: 1, status: 0),
            ])
        #expect(map.totals.map(\.byteCount) == [31, 5])
        #expect(InfoMap("base:allocation").text(totals: true) == "")
        #expect(InfoMap("qemu:dirty-bitmap:b").describe(1) == "dirty")
        #expect(InfoMap("qemu:allocation-depth").describe(2) == "backing depth 2")
        #expect(InfoMap("x:y").describe(0) == nil)
    }
}
