import NBDProtocol

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// A connection in transmission.
struct BenchConnection: Sendable {
    let socket: BenchSocket
    let session: ClientSession

    /// For connecting, and for each answer during the handshake.
    private static let timeLimitMilliseconds = 10_000

    /// Connects and agrees on the export and the kind of replies.
    ///
    /// - Throws: `.runtime` with one sentence: nobody there, the server refuses, or breaks the protocol.
    static func open(_ uri: NBDURI, mode: ReplyMode) throws(ToolError) -> BenchConnection {
        guard !uri.requiresTLS else { throw .runtime("nbd bench does not speak TLS (nbds://)") }
        let socket = try BenchSocket.connect(uri.address, timeLimitMilliseconds: timeLimitMilliseconds)
        var line = BenchLine(socket, mode: .simple, depth: 1, payload: nil)
        var handshake = ClientHandshake(ClientHandshake.Configuration(maximumMode: mode, infoRequests: [.blockSize]))
        while true {
            do throws(BenchLineError) {
                guard try line.receive(waiting: true) else { throw .failed(ETIMEDOUT) }
            } catch {
                if case .failed(let number) = error { throw .runtime("the handshake failed: \(HostProcess.text(of: number))") }
                throw .runtime("\(handshake.endOfInput())")
            }
            if let session = try advance(&handshake, &line, uri, socket) { return BenchConnection(socket: socket, session: session) }
        }
    }

    /// Takes what was received and answers. - Returns: the session, once it is agreed on.
    private static func advance(
        _ handshake: inout ClientHandshake, _ line: inout BenchLine, _ uri: NBDURI, _ socket: BenchSocket
    ) throws(ToolError) -> ClientSession? {
        while true {
            var output: [UInt8] = []
            var session: ClientSession?
            var refusal: RefusedOption?
            var needsMore = false
            do throws(HandshakeError) {
                let (consumed, action) = try handshake.receive(line.received, output: &output)
                line.take(consumed)
                switch action {
                case .read: needsMore = true
                case .ready: try handshake.begin(.go(export: uri.exportName), output: &output)
                case .transmit(let agreed): session = agreed
                case .completed(.refused(let told)): refusal = told
                case .completed, .close, .startTLS: needsMore = true
                }
            } catch {
                throw .runtime("\(error)")
            }
            if let refusal { throw .runtime("\(refusal)") }
            if !output.isEmpty, let number = HostProcess.write(output, to: socket.descriptor) {
                throw .runtime("the handshake failed: \(HostProcess.text(of: number))")
            }
            if let session {
                guard line.received.byteCount == 0 else { throw .runtime("\(HandshakeError.unexpectedBytes)") }
                return session
            }
            if needsMore { return nil }
        }
    }
}
