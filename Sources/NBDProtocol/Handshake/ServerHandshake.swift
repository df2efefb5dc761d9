/// The server's side of the handshake, as a value: bytes and answers in, bytes and an action out. No socket, no clock, no registry.
///
///     start → greeting → client flags → options … → transmit | close
///
/// The caller keeps what arrives in an inbox, calls `receive` with all of it, drops what was consumed, and obeys the action:
///
/// - `.read`: nothing more to do until more bytes arrive;
/// - `.lookUp(name)`: find the export and call `answer(_:)`, or `answerForbidden`;
/// - `.list`: call `answer(list:)` with all exports that this client may see, in the order of their creation;
/// - `.transmit(session)`: the handshake is over, what is left in the inbox belongs to the transmission phase;
/// - `.close(nil)` after a clean end (ABORT), `.close(violation)` otherwise.
///
/// After `answer` the caller goes on calling `receive` while that consumes anything. Spec: PROTOCOL 4–8 and 16; REFERENCE 1–2.
public struct ServerHandshake: ~Copyable {
    public enum Action: Equatable, Sendable {
        case read
        case lookUp(String)
        case list
        case transmit(Session)
        case close(ProtocolViolation?)
    }

    /// What the state holds is small and copyable, so that `switch state` may assign `state`.
    enum State {
        case clientFlags
        case option
        /// The rest of an option's data is read and thrown away, then the refusal goes out.
        case discarding(OptionType, remaining: Int, refusal: Refusal)
        case lookingUp(OptionType, Inquiry)
        case listing
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
    let trace: Tracer?
    var state = State.clientFlags
    var clientFlags: ClientFlags = []
    var mode = ReplyMode.simple
    /// What SET_META_CONTEXT chose, and for which export.
    var selection: (exportID: UInt64, contexts: [MetaContext])?
    var optionsLeft: Int
    var hasListed = false
    var isShuttingDown = false

    /// - Parameter isListable: whether LIST is answered; otherwise it is refused with ERR_POLICY (S-LIST-06).
    public init(limits: HandshakeLimits = HandshakeLimits(), isListable: Bool = true, trace: Tracer? = nil) {
        self.limits = limits
        self.isListable = isListable
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
        case .discarding(let option, let remaining, let refusal):
            let taken = min(remaining, input.byteCount)
            guard taken == remaining else {
                state = .discarding(option, remaining: remaining - taken, refusal: refusal)
                return (taken, .read)
            }
            return (taken, refuse(option, refusal, output: &output))
        case .lookingUp, .listing:
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
                return (16, close(isShuttingDown ? .exportNameRefused("") : .optionTooLong(option, byteCount: length)))
            }
            state = .discarding(option, remaining: Int(length), refusal: refusal)
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
