import NBDClient
import NBDProtocol
import NIOCore
import NIOPosix
import TestPeers
import Testing

/// A server that says what it was told to say, whatever it hears.
private final class ScriptedServer {
    let uri: NBDURI
    private let channel: any Channel
    private let directory: String

    /// - Parameters:
    ///   - greeting: sent at once.
    ///   - answers: one is sent for each arrival of bytes, as long as there are some.
    ///   - closes: after the last answer (without answers: at once).
    init(_ greeting: [UInt8], answers: [[UInt8]] = [], closes: Bool = false) async throws {
        directory = try #require(Peer.output("mktemp -d"))
        let path = directory + "/socket"
        uri = NBDURI(.unix(path: path))
        channel = try await ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(Script(greeting, answers, closes))
                }
            }
            .bind(unixDomainSocketPath: path).get()
    }

    deinit {
        channel.close(promise: nil)
        _ = Peer.output("rm -rf '\(directory)'")
    }

    private final class Script: ChannelInboundHandler {
        typealias InboundIn = ByteBuffer
        typealias OutboundOut = ByteBuffer
        let greeting: [UInt8]
        var answers: ArraySlice<[UInt8]>
        let closes: Bool

        init(_ greeting: [UInt8], _ answers: [[UInt8]], _ closes: Bool) {
            self.greeting = greeting
            self.answers = answers[...]
            self.closes = closes
        }

        func channelActive(context: ChannelHandlerContext) { send(greeting, context) }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            if let answer = answers.popFirst() { send(answer, context) }
        }

        private func send(_ bytes: [UInt8], _ context: ChannelHandlerContext) {
            context.writeAndFlush(wrapOutboundOut(ByteBuffer(bytes: bytes)), promise: nil)
            if closes, answers.isEmpty { context.close(promise: nil) }
        }
    }
}

private func big<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.appendBigEndian(value)
    return bytes
}

/// An oldstyle greeting: one message, and we are in transmission.
private let oldstyle = big(Magic.initial) + big(Magic.oldstyle) + big(UInt64(1 << 20)) + big(UInt32(1)) + [UInt8](repeating: 0, count: 124)
private let newstyle = big(Magic.initial) + big(Magic.option) + big(UInt16(3))

@Suite struct `Client against hostile servers` {
    private func impatient(_ mode: ReplyMode = .extended) -> NBDClient.Options {
        var options = NBDClient.Options()
        options.timeLimit = .milliseconds(200)
        options.handshake.maximumMode = mode
        return options
    }

    @Test func `says that nobody listens, and where`() async throws {
        let error = await #expect(throws: NBDClientError.self) { try await NBDClient.connect("nbd+unix:///?socket=/nonexistent/s") }
        #expect(error?.description == "cannot connect to /nonexistent/s: No such file or directory")
        let tcp = await #expect(throws: NBDClientError.self) { try await NBDClient.connect("nbd://127.0.0.1:1/") }
        #expect(tcp?.description == "cannot connect to 127.0.0.1:1: Connection refused")
        let long = await #expect(throws: NBDClientError.self) {
            try await NBDClient.connect("nbd+unix:///?socket=/" + String(repeating: "x", count: 300))
        }
        guard case .cannotConnect? = long else { throw Failure("\(String(describing: long))") }
    }

    @Test(arguments: ["nbds://h/?tls-type=psk", "nbds://h/?tls-type=anon", "nbd+vsock://2/", "nbd+unix:///?socket=%00x"])
    func `says clearly what it cannot do yet`(uri: String) async throws {  // P-URI-01, P-URI-02
        let error = await #expect(throws: NBDClientError.self) { try await NBDClient.connect(uri) }
        guard case .unsupported? = error else { throw Failure("\(String(describing: error))") }
    }

    @Test func `does not wait for ever`() async throws {
        let silent = try await ScriptedServer([])
        await #expect(throws: NBDClientError.timedOut("the server does not greet")) {
            try await NBDClient.connect(silent.uri, options: impatient())
        }
        let deaf = try await ScriptedServer(newstyle)
        await #expect(throws: NBDClientError.timedOut("the server does not answer an option")) {
            try await NBDClient.connect(deaf.uri, options: impatient(.simple))
        }
        let clingy = try await ScriptedServer(oldstyle)
        let client = try await NBDClient.connect(clingy.uri, options: impatient())
        await #expect(throws: NBDClientError.timedOut("the server does not close")) { try await client.disconnect() }
        await #expect(throws: NBDClientError.timedOut("the server does not close")) { try await client.flush() }
    }

    @Test func `recognises what is no NBD server`() async throws {
        let ssh = try await ScriptedServer(Array("SSH-2.0-OpenSSH_9.2p1\r\n".utf8))
        await #expect(throws: NBDClientError.handshake(.notAnNBDServer(0x5353_482D_322E_302D))) { try await NBDClient.connect(ssh.uri) }
        let mute = try await ScriptedServer([], closes: true)
        await #expect(throws: NBDClientError.handshake(.closed(during: "the greeting"))) { try await NBDClient.connect(mute.uri) }
        let half = try await ScriptedServer(newstyle, answers: [[0]], closes: true)
        await #expect(throws: NBDClientError.self) { try await NBDClient.connect(half.uri, options: impatient(.simple)) }
    }

    @Test func `fails every request when the server breaks the rules once`() async throws {  // P-REP-04
        let reply = big(Magic.simpleReply) + big(UInt32(0)) + big(UInt64(4711))
        let server = try await ScriptedServer(oldstyle, answers: [reply])
        let client = try await NBDClient.connect(server.uri)
        let error = NBDClientError.violation(ReplyViolation(.unknownCookie, cookie: 4711))
        await #expect(throws: error) { try await client.flush() }
        await #expect(throws: error) { try await client.flush() }
        #expect(try await client.failure == error)
    }

    @Test func `notices an end in the middle of a reply`() async throws {
        let reply = big(Magic.simpleReply) + big(UInt32(0)) + big(UInt64(1)) + [1, 2, 3]
        let server = try await ScriptedServer(oldstyle, answers: [reply], closes: true)
        let client = try await NBDClient.connect(server.uri)
        await #expect(throws: NBDClientError.closed("in the middle of a reply")) { try await client.read(at: 0, count: 4) }
    }

    @Test func `does not hold more data than it said`() async throws {
        let reply = big(Magic.simpleReply) + big(UInt32(0)) + big(UInt64(1)) + [1]
        let server = try await ScriptedServer(oldstyle, answers: [reply])
        var options = NBDClient.Options()
        options.readByteCountLimit = 1000
        let client = try await NBDClient.connect(server.uri, options: options)
        await #expect(throws: NBDClientError.replyTooLarge(1001)) { try await client.read(at: 0, count: 1001) }
    }

    @Test func `puts data together that come in any order`() async throws {  // P-CMD-READ-2
        var chunks: [UInt8] = []
        func head(_ type: UInt16, _ flags: UInt16, _ count: Int) -> [UInt8] {
            big(Magic.structuredReply) + big(flags) + big(type) + big(UInt64(1)) + big(UInt32(count))
        }
        chunks += head(1, 0, 10) + big(UInt64(107)) + [7, 8]
        chunks += head(1, 0, 9) + big(UInt64(100)) + [1]
        chunks += head(2, 0, 12) + big(UInt64(101)) + big(UInt32(3))
        chunks += head(1, 0, 11) + big(UInt64(104)) + [4, 5, 6]
        chunks += head(2, 1, 12) + big(UInt64(109)) + big(UInt32(2))
        func ack(_ option: UInt32, _ type: UInt32, _ data: [UInt8] = []) -> [UInt8] {
            big(Magic.optionReply) + big(option) + big(type) + big(UInt32(data.count)) + data
        }
        let info = ack(7, 3, big(UInt16(0)) + big(UInt64(1 << 20)) + big(UInt16(1))) + ack(7, 1)
        let server = try await ScriptedServer(newstyle, answers: [ack(8, 1), info, chunks])
        let client = try await NBDClient.connect(server.uri, options: impatient(.structured))
        let reply = try await client.request(NBDRequest(.read, offset: 100, length: 11))
        #expect(reply.data == [1, 0, 0, 0, 4, 5, 6, 7, 8, 0, 0])
        #expect(reply.chunks.count == 5 && reply.chunks.last == .hole(offset: 109, byteCount: 2))
        #expect(!reply.isSimple && reply.error == nil)
    }

    @Test func `closes its connection when it is let go`() async throws {
        let server = try await ScriptedServer(oldstyle)
        weak var gone: NBDClient?
        do {
            let client = try await NBDClient.connect(server.uri)
            gone = client
            _ = try await client.style
        }
        for _ in 0..<100 where gone != nil { try await Task.sleep(for: .milliseconds(10)) }
        #expect(gone == nil)
    }
}
