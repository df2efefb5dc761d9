import NIOCore
import NIOEmbedded
import NIOSSL
import Testing

@testable import NBDTLS

/// S-TLS-07: a client that resumes a session shows no certificate and names no user, so what became of them since would not be seen.
@Suite struct `Sessions of TLS` {
    private static func serverCredentials(isPSK: Bool) throws -> TLSServerCredentials {
        guard !isPSK else { return TLSServerCredentials(preSharedKeys: { _ in [1, 2, 3] }) }
        return try TLSServerCredentials(certificateChain: Array(Fixtures.plainServer.utf8), privateKey: Array(Fixtures.key.utf8))
    }

    /// TLS 1.2, in which tickets are sent in clear.
    private static func client(isPSK: Bool) throws -> NIOSSLClientHandler {
        var configuration = isPSK ? TLSConfiguration.makePreSharedKeyConfiguration() : TLSConfiguration.makeClientConfiguration()
        TLSSuites.apply(to: &configuration, isPSK: isPSK)
        configuration.maximumTLSVersion = .tlsv12
        configuration.certificateVerification = .none
        if isPSK { configuration.pskClientProvider = { _ in PSKClientIdentityResponse(key: NIOSSLSecureBytes([1, 2, 3]), identity: "alice") } }
        return try NIOSSLClientHandler(context: NIOSSLContext(configuration: configuration), serverHostname: nil)
    }

    /// Shakes hands in memory.
    ///
    /// - Returns: all that the server has sent.
    private static func bytes(from session: TLSServerSession, isPSK: Bool) throws -> [UInt8] {
        let server = EmbeddedChannel(handler: session.handler)
        let client = EmbeddedChannel(handler: try client(isPSK: isPSK))
        server.connect(to: try SocketAddress(unixDomainSocketPath: "/s"), promise: nil)
        client.connect(to: try SocketAddress(unixDomainSocketPath: "/s"), promise: nil)
        var sent: [UInt8] = []
        var isMoving = true
        while isMoving {
            isMoving = false
            while let buffer = try client.readOutbound(as: ByteBuffer.self) {
                isMoving = true
                try server.writeInbound(buffer)
            }
            while let buffer = try server.readOutbound(as: ByteBuffer.self) {
                isMoving = true
                sent += Array(buffer.readableBytesView)
                try client.writeInbound(buffer)
            }
        }
        _ = try session.peer()
        return sent
    }

    /// The first 16 bytes of a ticket name the key that it is encrypted with. Spec: RFC 5077, 3.3 and 4.
    private static func keyName(in records: [UInt8]) throws -> [UInt8] {
        var rest = records[...]
        while rest.count >= 5 {
            let head = Array(rest.prefix(5))
            let count = Int(head[3]) << 8 | Int(head[4])
            var messages = rest.dropFirst(5).prefix(count)
            rest = rest.dropFirst(5 + count)
            guard head[0] == 22 else { continue }
            while messages.count >= 4 {
                let message = Array(messages)
                let length = Int(message[1]) << 16 | Int(message[2]) << 8 | Int(message[3])
                // new_session_ticket: four bytes of lifetime, two of length, the ticket
                if message[0] == 4, length >= 22 { return Array(message[10..<26]) }
                messages = messages.dropFirst(4 + length)
            }
        }
        throw DERError()
    }

    @Test(arguments: [false, true])
    func `cannot be resumed: the key of each ticket is known to its own connection alone`(isPSK: Bool) throws {
        let credentials = try Self.serverCredentials(isPSK: isPSK)
        let names = try (0..<3).map { _ in try Self.keyName(in: Self.bytes(from: credentials.makeSession(), isPSK: isPSK)) }
        #expect(Set(names).count == 3)
    }

    @Test func `belong to users who are there when they begin`() throws {
        let store = try TLSCredentialStore(Self.serverCredentials(isPSK: true))
        _ = try Self.bytes(from: store.current.makeSession(), isPSK: true)
        store.replace(with: TLSServerCredentials(preSharedKeys: { _ in nil }))
        #expect(throws: (any Error).self) { try Self.bytes(from: store.current.makeSession(), isPSK: true) }
    }
}
