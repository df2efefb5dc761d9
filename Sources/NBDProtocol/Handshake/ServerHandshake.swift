/// The server's side of the handshake, as a value: bytes and answers in, bytes and an action out. No socket, no clock, no registry.
///
///     start → greeting → client flags → options … → transmit | close
///
/// The caller keeps what arrives in an inbox, calls `receive` with all of it, drops what was consumed, and obeys the action:
///
/// - `.read`: nothing more to do until more bytes arrive;
/// - `.lookUp(name)`: find the export and call `answer(_:)`, or `answerForbidden`;
/// - `.list`: call `answer(list:)` with all exports that this client may see, in the order of their creation;
/// - `.startTLS`: what is in `output` is the last that goes in clear; once TLS is up, call `tlsStarted()`. What is left in the inbox came in
///   clear from somebody who does not wait: close (P-TLS-11);
/// - `.transmit(session)`: the handshake is over, what is left in the inbox belongs to the transmission phase;
/// - `.close(nil)` after a clean end (ABORT), `.close(violation)` otherwise.
///
/// After `answer` the caller goes on calling `receive` while that consumes anything. Spec: PROTOCOL 4–8 and 16; REFERENCE 1–2.
public struct ServerHandshake: ~Copyable {
    public enum Action: Equatable, Sendable {
        case read
        case lookUp(String)
        case list
        case startTLS
        case transmit(Session)
        case close(ProtocolViolation?)
    }

    /// What the state holds is small and copyable, so that `switch state` may assign `state`.
    enum State {
        case clientFlags
        case option
        /// The rest of an option's data is read and thrown away, then the refusal goes out, and the conversation ends if there is a violation.
        case discarding(OptionType, remaining: Int, refusal: Refusal, violation: ProtocolViolation?)
        case lookingUp(OptionType, Inquiry)
        case listing
        case startingTLS
        case ended
    }

    /// An option that needs an export.
    enum Inquiry {
        case exportName(String)
        case info(name: String, types: [InfoType])
        /// Without queries: everything there is.
        case metaContexts(name: String, queries: [String]?)
    }

    let limits: HandshakeLimits
    let isListable: Bool
    let tls: TLSPolicy
    let trace: Tracer?
    /// Everything since `tlsStarted` is encrypted.
    public private(set) var isEncrypted = false
    var state = State.clientFlags
    var clientFlags: ClientFlags = []
    var mode = ReplyMode.simple
    /// What SET_META_CONTEXT chose, and for which export.
    var selection: (exportID: UInt64, contexts: [MetaContext])?
    var optionsLeft: Int
    var hasListed = false
    var isShuttingDown = false

    /// - Parameters:
    ///   - isListable: whether LIST is answered; otherwise it is refused with ERR_POLICY (S-LIST-06).
    ///   - tls: constant for the connection (P-TLS-02).
    public init(
        limits: HandshakeLimits = HandshakeLimits(), isListable: Bool = true, tls: TLSPolicy = .off, trace: Tracer? = nil
    ) {
        self.limits = limits
        self.isListable = isListable
        self.tls = tls
        self.trace = trace
        optionsLeft = limits.optionCountLimit
    }

    /// Writes the greeting (18 bytes): the server speaks first (S-HS-01…03).
    public func start(output: inout [UInt8]) {
        trace?(.negotiateBegin)
        output.appendBigEndian(Magic.initial)
        output.appendBigEndian(Magic.option)
        output.appendBigEndian(([.fixedNewstyle, .noZeroes] as HandshakeFlags).rawValue)
    }

    /// From now on every option but ABORT is answered with ERR_SHUTDOWN (P-TERM-06).
    public mutating func shutDown() { isShuttingDown = true }

    /// Continues after `.startTLS`: nothing that was agreed in clear holds any more, a stranger between the two may have said it (P-TLS-10).
    /// What counts against the limits goes on counting.
    public mutating func tlsStarted() {
        guard case .startingTLS = state else { return }
        isEncrypted = true
        mode = .simple
        selection = nil
        state = .option
    }

    /// Takes one message from the front of `input`, if a whole one is there.
    ///
    /// - Returns: how many bytes were used, and what to do next. `(0, .read)`: more bytes are needed.
    public mutating func receive(_ input: RawSpan, output: inout [UInt8]) -> (consumed: Int, action: Action) {
        switch state {
        case .clientFlags:
            var reader = WireReader(input)
            guard let raw: UInt32 = try? reader.read() else { return (0, .read) }
            clientFlags = ClientFlags(rawValue: raw)
            trace?(.negotiateOptionsFlags(clientFlags))
            guard clientFlags.isSubset(of: .known) else { return (4, close(.unknownClientFlags(raw))) }
            state = .option
            return (4, .read)
        case .option:
            return receiveOption(input, output: &output)
        case .discarding(let option, let remaining, let refusal, let violation):
            let taken = min(remaining, input.byteCount)
            guard taken == remaining else {
                state = .discarding(option, remaining: remaining - taken, refusal: refusal, violation: violation)
                return (taken, .read)
            }
            let action = refuse(option, refusal, output: &output)
            return (taken, violation == nil ? action : close(violation))
        case .lookingUp, .listing, .startingTLS:
            return (0, .read)
        case .ended:
            return (0, .close(nil))
        }
    }

    /// One option: 0 IHAVEOPT(8)  8 option(4)  12 length(4)  16 data.
    private mutating func receiveOption(_ input: RawSpan, output: inout [UInt8]) -> (consumed: Int, action: Action) {
        var reader = WireReader(input)
        guard reader.byteCount >= 8, let magic: UInt64 = try? reader.read() else { return (0, .read) }
        guard magic == Magic.option else {
            trace?(.negotiateOptionsCheckMagic(magic))
            return (8, close(.badOptionMagic(magic)))
        }
        guard reader.byteCount >= 8, let number: UInt32 = try? reader.read(), let length: UInt32 = try? reader.read() else {
            return (0, .read)
        }
        let option = OptionType(rawValue: number)
        guard length <= limits.discardByteCountLimit else { return (16, close(.optionTooLong(option, byteCount: length))) }
        guard clientFlags.contains(.fixedNewstyle) || option == .exportName else {
            return (16, close(.optionBeforeFixedNewstyle(option)))
        }
        // ABORT's data is not even waited for (P-OPT-05, S-ABRT-02).
        if option == .abort {
            trace?(.negotiateOptionsCheckOption(option, byteCount: length))
            reply(.ack, to: option, output: &output)
            return (16, close(nil))
        }
        if let refusal = refusalBeforeReading(option, byteCount: length) {
            trace?(.negotiateOptionsCheckOption(option, byteCount: length))
            guard countOption() else { return (16, close(.tooManyOptions)) }
            if option == .exportName {
                // There is no error reply for it (P-OPT-02).
                let isTooLong = refusal.type == .invalid
                return (16, close(isTooLong ? .optionTooLong(option, byteCount: length) : .exportNameRefused("")))
            }
            // Whoever sends data with STARTTLS may be trying to smuggle it past TLS (S-TLS-03).
            let isSmuggling = option == .startTLS && tls != .off && !isEncrypted && length > 0
            state = .discarding(
                option, remaining: Int(length), refusal: refusal, violation: isSmuggling ? .dataInClearWithStartTLS : nil)
            let (taken, action) = receive(input.extracting(droppingFirst: 16), output: &output)
            return (16 + taken, action)
        }
        guard reader.byteCount >= Int(length) else { return (0, .read) }
        trace?(.negotiateOptionsCheckOption(option, byteCount: length))
        guard countOption() else { return (16, close(.tooManyOptions)) }
        var payload = WireReader(input.extracting(16..<(16 + Int(length))))
        return (16 + Int(length), perform(option, &payload, output: &output))
    }

    private mutating func countOption() -> Bool {
        optionsLeft -= 1
        return optionsLeft >= 0
    }

    /// Refusals that do not depend on the data: it is then thrown away in whatever pieces it comes.
    private mutating func refusalBeforeReading(_ option: OptionType, byteCount: UInt32) -> Refusal? {
        if isShuttingDown { return Refusal(.shutdown, "the server is shutting down") }
        // P-TLS-05; ABORT was answered before.
        if tls == .required, !isEncrypted, option != .startTLS {
            return Refusal(.tlsRequired, "option \(option.rawValue) needs TLS: send STARTTLS first")
        }
        switch option {
        case .exportName:
            return byteCount > stringByteCountLimit ? Refusal(.invalid, "") : nil
        case .list, .startTLS, .structuredReply, .extendedHeaders:
            return byteCount > 0 ? Refusal(.invalid, "option \(option) takes no data") : nil
        case .setMetaContext where byteCount > limits.optionByteCountLimit:
            selection = nil
            return tooBig(option, byteCount)
        case .info, .go, .listMetaContext, .setMetaContext:
            return byteCount > limits.optionByteCountLimit ? tooBig(option, byteCount) : nil
        default:
            return Refusal(.unsupported, "unsupported option \(option.rawValue)")
        }
    }

    private func tooBig(_ option: OptionType, _ byteCount: UInt32) -> Refusal {
        Refusal(.tooBig, "option \(option) of \(byteCount) bytes; at most \(limits.optionByteCountLimit) are read")
    }

    /// Ends the conversation.
    mutating func close(_ violation: ProtocolViolation?) -> Action {
        state = .ended
        return .close(violation)
    }

    /// Enters transmission; contexts chosen for another export are forgotten (S-EXPN-08, S-INFO-21).
    mutating func transmit(_ export: ExportDescription) -> Action {
        state = .ended
        let contexts = contexts(for: export)
        trace?(.negotiateSuccess)
        return .transmit(Session(export: export, flags: flags(for: export, contexts: contexts), mode: mode, contexts: contexts))
    }

    func contexts(for export: ExportDescription) -> [MetaContext] {
        // What was hidden from this client since it selected is not given to it either.
        selection.map { $0.exportID == export.id ? $0.contexts.filter(export.contexts.contains) : [] } ?? []
    }

    /// Transmission flags as this client sees them (P-FLG-04, P-FLG-08).
    ///
    /// - Parameter contexts: what is selected; nil for INFO, where the client may still select.
    func flags(for export: ExportDescription, contexts: [MetaContext]?) -> TransmissionFlags {
        var flags = export.flags
        if mode != .simple { flags.insert(.df) }
        if mode == .extended, (contexts ?? export.contexts).isEmpty == false { flags.insert(.blockStatusPayload) }
        return flags
    }
}

/// The layout of the 152-byte oldstyle greeting (PROTOCOL 2): size and flags at once, no negotiation at all.
public func oldstyleGreeting(for export: ExportDescription) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.appendBigEndian(Magic.initial)
    bytes.appendBigEndian(Magic.oldstyle)
    bytes.appendBigEndian(export.byteCount)
    bytes.appendBigEndian(UInt32(export.flags.rawValue))
    bytes.append(contentsOf: repeatElement(0, count: 124))
    return bytes
}
