import NBDProtocol

/// The server's handshake. Input: setup, fragmentation, then what the client sends.
///
/// Promises: no trap; what is not consumed is bounded; replies are well formed and name an option that was asked; the conversation does not
/// depend on how the bytes were cut; what it agrees on is in order.
@Sendable func fuzzHandshake(_ input: [UInt8]) {
    guard input.count >= 2 else { return }
    let conversation = Array(input.dropFirst(2))
    let whole = HandshakeRun(setup: input[0], fragmentation: 0, traces: input[1] & 0x80 != 0).run(conversation)
    let cut = HandshakeRun(setup: input[0], fragmentation: input[1], traces: false).run(conversation)
    precondition(whole.output == cut.output, "the answers depend on how the bytes were cut")
    precondition(whole.outcome == cut.outcome, "the outcome depends on how the bytes were cut: \(whole.outcome) and \(cut.outcome)")
}

private struct HandshakeRun {
    var exports: [ExportDescription] = []
    var handshake: HandshakeSetup
    var fragmentation: UInt8
    var defaultName = "disk"

    struct HandshakeSetup {
        var limits = HandshakeLimits()
        var isListable: Bool
        var shutsDown: Bool
        var traces: Bool
    }

    struct Result: Equatable {
        var output: [UInt8] = []
        var outcome: ServerHandshake.Action = .read
    }

    init(setup: UInt8, fragmentation: UInt8, traces: Bool) {
        self.fragmentation = fragmentation
        handshake = HandshakeSetup(isListable: setup & 1 == 0, shutsDown: setup & 2 != 0, traces: traces)
        if setup & 4 != 0 {
            handshake.limits.optionByteCountLimit = 256
            handshake.limits.optionCountLimit = 5
            handshake.limits.queryCountLimit = 2
            handshake.limits.discardByteCountLimit = 10_000
        }
        let flags: TransmissionFlags = [.hasFlags, .flush, .fua, .trim, .writeZeroes, .fastZero, .cache, .multiConn]
        exports = [
            ExportDescription(id: 1, name: "disk", text: "a disk", byteCount: 1 << 30, flags: flags),
            ExportDescription(
                id: 2, name: "small", byteCount: 4096, flags: [.hasFlags, .readOnly], blockSizes: BlockSizes(minimum: 512),
                contexts: [
                    .baseAllocation, MetaContext(id: 1, name: "qemu:allocation-depth"), MetaContext(id: 2, name: "qemu:dirty-bitmap:b"),
                ]),
        ]
        if setup & 8 != 0 { exports.append(ExportDescription(id: 3, name: "", byteCount: .max >> 1, flags: flags)) }
    }

    func run(_ conversation: [UInt8]) -> Result {
        var random = Random(seed: UInt64(fragmentation))
        var trace: Tracer?
        if handshake.traces { trace = { event in precondition(!event.description.isEmpty) } }
        var machine = ServerHandshake(limits: handshake.limits, isListable: handshake.isListable, trace: trace)
        var result = Result()
        machine.start(output: &result.output)
        precondition(result.output.count == 18)
        if handshake.shutsDown { machine.shutDown() }

        var inbox: [UInt8] = []
        var fed = 0
        while fed < conversation.count {
            let count = min(random.pieceByteCount(fragmentation), conversation.count - fed)
            inbox += conversation[fed..<(fed + count)]
            fed += count
            feeding: while true {
                // SAFETY: bytes have no padding.
                let (consumed, first) = unsafe machine.receive(inbox.span.bytes, output: &result.output)
                precondition(consumed <= inbox.count, "consumed more than there is")
                inbox.removeFirst(consumed)
                var action = first
                while true {
                    switch action {
                    case .read:
                        if consumed == 0 { break feeding }
                        continue feeding
                    case .lookUp(let name):
                        action = machine.answer(exports.first { $0.name == name }, output: &result.output)
                    case .list:
                        action = machine.answer(list: exports, output: &result.output)
                    case .startTLS:
                        preconditionFailure("TLS without credentials (P-TLS-04)")
                    case .transmit(let session):
                        check(session)
                        result.outcome = action
                        checkReplies(result.output, conversation, ended: true)
                        return result
                    case .close:
                        result.outcome = action
                        checkReplies(result.output, conversation, ended: true)
                        return result
                    }
                }
            }
            // A message that is kept until it is whole: header and data of an option that is read at all.
            let longest = max(Int(handshake.limits.optionByteCountLimit), stringByteCountLimit)  // EXPORT_NAME may have a full name
            precondition(inbox.count < 16 + longest + count, "keeps \(inbox.count) bytes")
        }
        checkReplies(result.output, conversation, ended: false)
        return result
    }

    private func check(_ session: Session) {
        precondition(exports.contains(session.export), "an export nobody has")
        precondition(session.flags.contains(.hasFlags))
        precondition(session.flags.contains(.df) == (session.mode != .simple), "DF without chunks (P-FLG-04)")
        precondition(!session.flags.contains(.blockStatusPayload) || session.mode == .extended && !session.contexts.isEmpty, "P-FLG-08")
        precondition(session.contexts.allSatisfy(session.export.contexts.contains), "contexts of another export (P-META-12)")
        precondition(session.contexts.isEmpty || session.mode != .simple, "contexts without chunks (P-META-09)")
    }

    /// Behind the greeting there are only whole replies to options that were asked; at the end there may be EXPORT_NAME's answer.
    private func checkReplies(_ output: [UInt8], _ conversation: [UInt8], ended: Bool) {
        // SAFETY: bytes have no padding.
        var rest = unsafe WireReader(output.span.bytes.extracting(droppingFirst: 18))
        while rest.byteCount > 0 {
            if ended, rest.byteCount == 10 || rest.byteCount == 134 { return }
            do {
                let magic: UInt64 = try rest.read()
                precondition(magic == Magic.optionReply, "no reply magic")
                let option: UInt32 = try rest.read()
                precondition(option != OptionType.exportName.rawValue, "EXPORT_NAME has no reply")
                let type = OptionReplyType(rawValue: try rest.read())
                precondition(OptionReplyType.names.contains { $0.0 == type }, "reply type \(type)")
                let count: UInt32 = try rest.read()
                let data = try rest.bytes(Int(count))
                if type.isError || type == .ack {
                    precondition(String(protocolBytes: data) != nil && data.count <= 1000, "text of a refusal")
                }
            } catch {
                preconditionFailure("half a reply")
            }
        }
    }
}
