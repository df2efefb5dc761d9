import NBDProtocol

/// The order of options around STARTTLS. Input: setup, fragmentation, length of the part in clear (2), the part in clear, the encrypted part.
///
/// Promises: no trap; the same answers however the bytes are cut; in clear nothing of what requires TLS is told, and with FORCEDTLS nothing at
/// all; bytes in clear are never taken for encrypted ones; what was said in clear does not change a single byte of what is said afterwards.
@Sendable func fuzzTLS(_ input: [UInt8]) {
    guard input.count >= 4 else { return }
    let clearCount = min(Int(input[2]) << 8 | Int(input[3]), input.count - 4)
    let clear = Array(input[4..<(4 + clearCount)])
    let encrypted = Array(input[(4 + clearCount)...])
    let setup = Setup(isRequired: input[0] & 1 == 0, isListable: input[0] & 2 == 0)

    let whole = setup.run(clear, encrypted, fragmentation: 0)
    let cut = setup.run(clear, encrypted, fragmentation: input[1])
    precondition(whole == cut, "the conversation depends on how the bytes were cut")
    guard whole.isEncrypted else { return }
    // A client that has asked for nothing but TLS hears the same from then on.
    let fresh = setup.run(Array(clear.prefix(4)) + startTLS, encrypted, fragmentation: 0)
    precondition(fresh.isEncrypted && fresh.encryptedOutput == whole.encryptedOutput, "something agreed on in clear is still known")
    precondition(fresh.outcome == whole.outcome, "something agreed on in clear has changed the session")
}

private let startTLS: [UInt8] = Array("IHAVEOPT".utf8) + [0, 0, 0, 5, 0, 0, 0, 0]

private struct Setup {
    var isRequired: Bool
    var isListable: Bool

    static let flags: TransmissionFlags = [.hasFlags, .flush, .fua, .trim, .writeZeroes, .fastZero, .cache, .multiConn]
    static let exports = [
        ExportDescription(id: 1, name: "disk", text: "a disk", byteCount: 1 << 30, flags: flags),
        ExportDescription(id: 2, name: "secret", text: "hidden", byteCount: 4096, flags: flags, requiresTLS: true),
    ]

    struct Result: Equatable {
        var clearOutput: [UInt8] = []
        var encryptedOutput: [UInt8] = []
        var isEncrypted = false
        var outcome: ServerHandshake.Action = .read
    }

    func run(_ clear: [UInt8], _ encrypted: [UInt8], fragmentation: UInt8) -> Result {
        var limits = HandshakeLimits()
        limits.optionCountLimit = 1 << 20  // they go on counting, which is the one thing that is remembered
        var machine = ServerHandshake(limits: limits, isListable: isListable, tls: isRequired ? .required : .optional)
        var result = Result()
        machine.start(output: &result.clearOutput)
        result.clearOutput = []
        let left = feed(&machine, clear, fragmentation, &result.clearOutput, &result.outcome)
        checkClear(result)
        guard result.outcome == .startTLS else { return result }
        result.outcome = .read
        // As the shell does: somebody has put them there who cannot encrypt (P-TLS-11).
        guard left == 0 else {
            result.outcome = .close(.dataInClearWithStartTLS)
            return result
        }
        machine.tlsStarted()
        result.isEncrypted = true
        _ = feed(&machine, encrypted, fragmentation, &result.encryptedOutput, &result.outcome)
        precondition(result.outcome != .startTLS, "TLS in TLS (P-TLS-07)")
        precondition(!types(result.encryptedOutput).contains(.tlsRequired), "ERR_TLS_REQD in TLS (P-TLS-07)")
        return result
    }

    /// - Returns: bytes that were not used when the conversation in this form was over.
    private func feed(
        _ machine: inout ServerHandshake, _ bytes: [UInt8], _ fragmentation: UInt8, _ output: inout [UInt8], _ outcome: inout ServerHandshake.Action
    ) -> Int {
        var random = Random(seed: UInt64(fragmentation))
        var inbox: [UInt8] = []
        var fed = 0
        while fed < bytes.count {
            let count = min(random.pieceByteCount(fragmentation), bytes.count - fed)
            inbox += bytes[fed..<(fed + count)]
            fed += count
            while true {
                // SAFETY: bytes have no padding.
                let (consumed, first) = unsafe machine.receive(inbox.span.bytes, output: &output)
                inbox.removeFirst(consumed)
                var action = first
                while true {
                    if case .lookUp(let name) = action {
                        precondition(!isRequired || machine.isEncrypted, "an export is looked up in clear")
                        action = machine.answer(Self.exports.first { $0.name == name }, output: &output)
                    } else if case .list = action {
                        precondition(!isRequired || machine.isEncrypted, "exports are listed in clear")
                        action = machine.answer(list: Self.exports, output: &output)
                    } else {
                        break
                    }
                }
                guard action == .read else {
                    outcome = action
                    return inbox.count + bytes.count - fed
                }
                if consumed == 0 { break }
            }
        }
        return 0
    }

    private func checkClear(_ result: Result) {
        if case .transmit(let session) = result.outcome {
            precondition(!isRequired && !session.export.requiresTLS, "a session in clear")
        }
        // Refusals name what was asked for; these tell what there is.
        for (type, data) in replies(result.clearOutput) where type == .server || type == .info {
            precondition(!contains(data, Array("hidden".utf8)), "told in clear what requires TLS")
        }
        guard isRequired else { return }
        let allowed: Set<OptionReplyType> = [.tlsRequired, .ack, .invalid]
        precondition(types(result.clearOutput).allSatisfy(allowed.contains), "an answer in clear")
    }

    private func contains(_ bytes: [UInt8], _ part: [UInt8]) -> Bool {
        bytes.indices.contains { bytes[$0...].starts(with: part) }
    }

    private func types(_ output: [UInt8]) -> [OptionReplyType] { replies(output).map(\.type) }

    /// All whole replies, up to EXPORT_NAME's answer, which is none.
    private func replies(_ output: [UInt8]) -> [(type: OptionReplyType, data: [UInt8])] {
        var replies: [(type: OptionReplyType, data: [UInt8])] = []
        // SAFETY: bytes have no padding.
        var rest = unsafe WireReader(output.span.bytes)
        while let magic: UInt64 = try? rest.read(), magic == Magic.optionReply, let _: UInt32 = try? rest.read(),
            let type: UInt32 = try? rest.read(), let count: UInt32 = try? rest.read(), let data = try? rest.bytes(Int(count))
        {
            replies.append((OptionReplyType(rawValue: type), data))
        }
        return replies
    }
}
