import NBDProtocol

/// A hostile server, as our client meets it. Input: setup, fragmentation, then what the server sends, greeting first.
///
/// Promises: no trap; what is kept is bounded; whatever is told has limits; the conversation does not depend on how the bytes were cut.
@Sendable func fuzzClient(_ input: [UInt8]) {
    guard input.count >= 2 else { return }
    let conversation = Array(input.dropFirst(2))
    let whole = ClientRun(setup: input[0], fragmentation: 0).run(conversation)
    let cut = ClientRun(setup: input[0], fragmentation: input[1]).run(conversation)
    precondition(whole == cut, "the outcome depends on how the bytes were cut: \(whole.suffix(2)) and \(cut.suffix(2))")
}

private struct ClientRun {
    let setup: UInt8
    let fragmentation: UInt8

    /// What happened, in order, in words; data without its cuts.
    func run(_ conversation: [UInt8]) -> [String] {
        var random = Random(seed: UInt64(fragmentation))
        var configuration = ClientHandshake.Configuration()
        configuration.maximumMode = [.simple, .structured, .extended, .extended][Int(setup & 3)]
        configuration.asksNoZeroes = setup & 4 == 0
        configuration.limits.replyCountLimit = 100
        var handshake = ClientHandshake(configuration)
        var session: ClientSession?
        var asked = Array(requests[..<Int(setup >> 5 & 3)]) + [setup & 16 == 0 ? .go(export: "disk") : .exportName("disk")]
        var story: [String] = []
        var output: [UInt8] = []
        var inbox: [UInt8] = []
        var fed = 0
        do throws(HandshakeError) {
            while session == nil {
                // SAFETY: bytes have no padding.
                let (consumed, action) = unsafe try handshake.receive(inbox.span.bytes, output: &output)
                inbox.removeFirst(consumed)
                precondition(output.count <= 10_000, "says \(output.count) bytes")
                switch action {
                case .read:
                    precondition(inbox.count <= 20 + Int(configuration.limits.replyByteCountLimit) + 152, "keeps \(inbox.count) bytes")
                    guard fed < conversation.count else { return story + [handshake.endOfInput().description] }
                    let count = min(random.pieceByteCount(fragmentation) & 0xFFFF, conversation.count - fed)
                    inbox += conversation[fed..<(fed + count)]
                    fed += count
                    continue
                case .startTLS: preconditionFailure("nobody wants TLS")
                case .ready: break
                case .completed(let outcome): story.append("\(outcome)")
                case .transmit(let agreed):
                    session = agreed
                    continue
                case .close: return story + ["closed"]
                }
                guard !asked.isEmpty else { return story }
                try handshake.begin(asked.removeFirst(), output: &output)
            }
        } catch {
            return story + [error.description]
        }
        guard let session else { return story }
        story.append("\(session)")
        precondition(session.info.flags.contains(.hasFlags) || handshake.style == .oldstyle, "P-FLG-01")
        return story + receive(inbox + conversation[fed...], session, &random)
    }

    private var requests: [ClientHandshake.Request] {
        [
            .list, .listMetaContexts(export: "disk", queries: []), .setMetaContexts(export: "disk", queries: ["base:allocation"]),
            .info(export: "disk"),
        ]
    }

    /// The replies to one request of each kind.
    private func receive(_ bytes: [UInt8], _ session: ClientSession, _ random: inout Random) -> [String] {
        var decoder = ReplyDecoder(mode: session.mode, contexts: session.contexts)
        let commands: [Command] = [.read, .write, .flush, .trim, .cache, .writeZeroes, .blockStatus, .read]
        for (index, command) in commands.enumerated() {
            let flags: CommandFlags = index == 7 ? .df : command == .blockStatus && setup & 8 != 0 ? .reqOne : []
            precondition(
                decoder.expect(
                    RequestHeader(flags: flags, command: command, cookie: UInt64(index), offset: UInt64(index) * 4096, length: 4096)))
        }
        var story: [String] = []
        var dataCount = 0
        var inbox: [UInt8] = []
        var fed = 0
        do throws(ReplyViolation) {
            while true {
                // SAFETY: bytes have no padding.
                let (consumed, event) = unsafe try decoder.receive(inbox.span.bytes)
                switch event {
                case .data(_, let offset, let range, _):
                    precondition(range.upperBound <= inbox.count && offset < 1 << 16, "data outside of what came, or was asked")
                    dataCount += range.count
                case .read(let atLeast):
                    inbox.removeFirst(consumed)
                    if consumed > 0, !inbox.isEmpty { continue }
                    precondition(inbox.count < atLeast && atLeast <= 32 << 20, "wants \(atLeast) bytes, has \(inbox.count)")
                    guard fed < bytes.count else { return story + ["\(dataCount) bytes of data"] }
                    let count = min(random.pieceByteCount(fragmentation) & 0xFFFF, bytes.count - fed)
                    inbox += bytes[fed..<(fed + count)]
                    fed += count
                    continue
                default: story.append("\(event)")
                }
                inbox.removeFirst(consumed)
            }
        } catch {
            precondition(!error.description.isEmpty)
            return story + [error.description]
        }
    }
}
