import NBDClient
import NBDProtocol
import TestPeers
import Testing

private let hasQEMU = Peer.isInstalled("qemu-nbd")
private let hasNBDKit = Peer.isInstalled("nbdkit")

@Suite struct `Client against qemu-nbd` {
    @Test(.enabled(if: hasQEMU, "qemu-nbd is not installed"), arguments: [ReplyMode.simple, .structured, .extended])
    func `reads what it wrote, in every mode`(mode: ReplyMode) async throws {
        let peer = try #require(Peer.qemuNBD())
        var options = NBDClient.Options()
        options.handshake.maximumMode = mode
        options.contexts = ["base:allocation"]
        let client = try await NBDClient.connect(peer.uri("disk"), options: options)
        let session = try #require(try await client.session)
        #expect(session.info.byteCount == 10 << 20)
        #expect(session.info.name == "disk")
        #expect(session.info.blockSizes?.maximumPayload == 32 << 20)
        #expect(session.contexts.map(\.name) == (mode == .simple ? [] : ["base:allocation"]))

        let bytes = (0..<100_000).map { UInt8(truncatingIfNeeded: $0 &* 31) }
        try await client.write(at: 12345, bytes, flags: .fua)
        try await client.flush()
        #expect(try await client.read(at: 12345, count: bytes.count) == bytes)
        try await client.writeZeroes(at: 12345, count: 50_000)
        try await client.trim(at: 1 << 20, count: 1 << 20)
        try await client.cache(at: 0, count: 4096)
        // A sparse READ: zeroes come as holes once chunks were agreed.
        let reply = try await client.request(NBDRequest(.read, offset: 0, length: 1 << 20))
        #expect(reply.data.count == 1 << 20)
        #expect(reply.data[62345..<112345] == bytes[50_000...])
        #expect(reply.data[..<62345].allSatisfy { $0 == 0 })
        #expect(reply.isSimple == (mode == .simple))
        if mode == .simple {
            await #expect(throws: ReplyError.self) { try await client.blockStatus(at: 0, count: 4096) }
        } else {
            let extents = try #require(try await client.blockStatus(at: 0, count: 10 << 20)["base:allocation"])
            #expect(extents.map(\.byteCount).reduce(0, +) <= 10 << 20)
            #expect(try await client.blockStatus(at: 0, count: 10 << 20, flags: .reqOne)["base:allocation"]?.count == 1)
        }
        try await client.disconnect()
    }

    @Test(.enabled(if: hasQEMU, "qemu-nbd is not installed"))
    func `shows the error of a wrong request, and goes on`() async throws {
        let peer = try #require(Peer.qemuNBD())
        var options = NBDClient.Options()
        options.handshake.maximumMode = .structured
        let client = try await NBDClient.connect(peer.uri("disk"), options: options)
        let reply = try await client.request(NBDRequest(.read, offset: 10 << 20, length: 512))
        #expect(reply.error?.code == .invalid)
        #expect(reply.error?.text.isEmpty == false)
        let unknown = try await client.request(NBDRequest(Command(rawValue: 99), flags: CommandFlags(rawValue: 0x8000)))
        #expect(unknown.error?.code == .invalid)
        await #expect(throws: ReplyError.self) { try await client.write(at: (10 << 20) - 1, [1, 2]) }
        // A compact header has no room for more than 32 bits: it is the rest that is asked for.
        #expect(try await client.request(NBDRequest(.read, offset: 0, length: 1 << 32 | 512)).data.count == 512)
        #expect(try await client.read(at: 0, count: 512).count == 512)
        try await client.disconnect()
    }

    @Test(.enabled(if: hasQEMU, "qemu-nbd is not installed"))
    func `lists exports and contexts, and is told of unknown ones`() async throws {
        let peer = try #require(Peer.qemuNBD())
        let client = try await NBDClient.open(peer.uri(""))
        #expect(try await client.style == .fixedNewstyle)
        #expect(try await client.listExports() == [ListedExport(name: "disk", text: "a disk")])
        #expect(try await client.listMetaContexts("disk").map(\.name) == ["base:allocation"])
        #expect(try await client.info("disk").text == "a disk")
        let refusal = await #expect(throws: RefusedOption.self) { try await client.info("nope") }
        #expect(refusal?.reply == .unknown)
        #expect(try await client.rawOption(OptionType(rawValue: 77)).map(\.type) == [.unsupported])
        try await client.go("disk")
        await #expect(throws: NBDClientError.wrongPhase) { try await client.listExports() }
        try await client.disconnect()
        await #expect(throws: NBDClientError.closed("")) { try await client.flush() }
    }

    @Test(.enabled(if: hasQEMU, "qemu-nbd is not installed"))
    func `learns by a closed connection that EXPORT_NAME was not liked`() async throws {
        let peer = try #require(Peer.qemuNBD())
        let client = try await NBDClient.open(peer.uri(""))
        let error = await #expect(throws: NBDClientError.self) { try await client.exportName("nope") }
        guard case .handshake(.closed)? = error else { throw Failure("\(String(describing: error))") }
    }

    @Test(.enabled(if: hasQEMU, "qemu-nbd is not installed"))
    func `breaks off by ABORT before an export is chosen`() async throws {
        let peer = try #require(Peer.qemuNBD())
        let client = try await NBDClient.open(peer.uri(""))
        try await client.disconnect()
    }
}

@Suite struct `Client against nbdkit` {
    @Test(.enabled(if: hasNBDKit, "nbdkit is not installed"))
    func `has many requests in flight, answered out of order`() async throws {
        // The delay grows with nothing: 64 requests at 20 ms each would take 1.3 s one by one.
        let peer = try #require(Peer.nbdkit("-t 16 --filter=delay pattern 1M rdelay=20ms"))
        let client = try await NBDClient.connect(peer.uri(""))
        try await withThrowingTaskGroup(of: Void.self) { group in
            for index in 0..<64 {
                group.addTask {
                    let offset = UInt64(index) * 16_384
                    let bytes = try await client.read(at: offset, count: 16_384)
                    // The pattern holds at each 8th byte the offset itself, big-endian.
                    for at in stride(from: 0, to: bytes.count, by: 8) {
                        let value = bytes[at..<at + 8].reduce(0) { $0 << 8 | UInt64($1) }
                        guard value == offset + UInt64(at) else { throw Failure("offset \(offset + UInt64(at)) holds \(value)") }
                    }
                }
            }
            try await group.waitForAll()
        }
        try await client.disconnect()
    }

    @Test(
        .enabled(if: hasNBDKit, "nbdkit is not installed"),
        arguments: ["--mask-handshake=0", "--mask-handshake=1", "--oldstyle", "--no-sr", ""])
    func `understands servers of every age`(arguments: String) async throws {
        let peer = try #require(Peer.nbdkit(arguments + " memory 1M"))
        let client = try await NBDClient.connect(peer.uri(""))
        try await client.write(at: 1000, [1, 2, 3])
        #expect(try await client.read(at: 999, count: 5) == [0, 1, 2, 3, 0])
        #expect(try await client.session?.info.byteCount == 1 << 20)
        switch arguments {
        case "--oldstyle": #expect(try await client.style == .oldstyle)
        case "--mask-handshake=0": #expect(try await client.style == .newstyle)
        default: #expect(try await client.style == .fixedNewstyle)
        }
        #expect(try await client.mode == (arguments.isEmpty || arguments == "--mask-handshake=1" ? .structured : .simple))
        try await client.disconnect()
    }

    @Test(.enabled(if: hasNBDKit, "nbdkit is not installed"))
    func `fails requests on their way when the connection is cut`() async throws {
        let peer = try #require(Peer.nbdkit("--filter=delay memory 1M rdelay=30"))
        let client = try await NBDClient.connect(peer.uri(""))
        let lost = Task { try await client.read(at: 0, count: 512) }
        try await Task.sleep(for: .milliseconds(50))
        await client.close()
        let error = await #expect(throws: NBDClientError.self) { try await lost.value }
        #expect(error == .closed(""))
    }

    @Test(.enabled(if: hasNBDKit, "nbdkit is not installed"))
    func `gives up on a request when its time is over`() async throws {
        let peer = try #require(Peer.nbdkit("--filter=delay memory 1M rdelay=30"))
        var options = NBDClient.Options()
        options.requestTimeLimit = .milliseconds(50)
        let client = try await NBDClient.connect(peer.uri(""), options: options)
        await #expect(throws: NBDClientError.timedOut("no reply to READ")) { try await client.read(at: 0, count: 512) }
    }
}

struct Failure: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}
