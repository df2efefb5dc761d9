/// The client's half of the handshake: bytes from the server in, bytes to it and an `Action` out. No socket, no clock.
///
///     greeting ─► (STARTTLS ─► startTLS) ─► (EXTENDED_HEADERS) ─► (STRUCTURED_REPLY) ─► ready ⇄ one option at a time ─► transmit | close
///        └─ oldstyle: transmit at once                          └─ GO refused as unknown: EXPORT_NAME
///
/// What the server may make us keep is bounded by `Limits`; what breaks the protocol throws `HandshakeError`, after which nothing more may be
/// fed. Spec: proto.md, "Newstyle negotiation", "Option types"; PROTOCOL 4, 5 and 8.
public struct ClientHandshake: ~Copyable {
    public struct Configuration: Sendable {
        /// The best kind of replies to ask for; the server may know less (P-EXT-01, P-OPT-10).
        public var maximumMode: ReplyMode
        /// Whether to spare the 124 zeroes after EXPORT_NAME (P-HS-03).
        public var asksNoZeroes: Bool
        /// What INFO and GO ask for besides EXPORT, which comes anyway.
        public var infoRequests: [InfoType]
        public var limits: Limits
        /// Nothing is asked but STARTTLS before TLS is up; a server that cannot or will not is left (P-URI-01).
        public var requiresTLS: Bool

        public init(
            maximumMode: ReplyMode = .extended, asksNoZeroes: Bool = true, infoRequests: [InfoType] = [.name, .description, .blockSize],
            limits: Limits = Limits(), requiresTLS: Bool = false
        ) {
            self.maximumMode = maximumMode
            self.asksNoZeroes = asksNoZeroes
            self.infoRequests = infoRequests
            self.limits = limits
            self.requiresTLS = requiresTLS
        }
    }

    /// How much a server may tell us.
    public struct Limits: Sendable {
        /// Bytes in one option reply. A name and a description of 4096 bytes each fit (P-GEN-01).
        public var replyByteCountLimit: UInt32 = 16_384
        /// Replies to one option.
        public var replyCountLimit = 10_000
        public init() {}
    }

    /// What to ask of the server next.
    public enum Request: Equatable, Sendable {
        case list
        /// Without queries: everything there is (P-META-05).
        case listMetaContexts(export: String, queries: [String])
        case setMetaContexts(export: String, queries: [String])
        case info(export: String)
        /// Falls back to EXPORT_NAME if the server does not know GO.
        case go(export: String)
        case exportName(String)
        case abort
        /// Any option but EXPORT_NAME with any data: a probe for servers. Answered with `.raw`. Of what it changes only the mode is noticed.
        case raw(OptionType, data: [UInt8])
    }

    public enum Action: Equatable, Sendable {
        /// Feed more bytes.
        case read
        /// Start TLS, then call `tlsStarted`. Nothing more may come in clear.
        case startTLS
        /// The mode is agreed; `begin` may be called.
        case ready
        /// The option is over; `begin` may be called.
        case completed(Outcome)
        /// Bytes not consumed belong to the transmission phase.
        case transmit(ClientSession)
        /// ABORT was acknowledged.
        case close
    }

    public enum Outcome: Equatable, Sendable {
        case exports([ListedExport])
        case contexts([MetaContext])
        case info(ExportInfo)
        case refused(RefusedOption)
        case raw([RawOptionReply])
    }

    public let configuration: Configuration
    /// Known once the greeting has arrived.
    public private(set) var style: HandshakeStyle?
    public private(set) var serverFlags: HandshakeFlags = []
    /// What READ and its kin will be answered with.
    public internal(set) var mode: ReplyMode = .simple
    /// The selection of the last SET_META_CONTEXT, and its export.
    var selection: (export: String, contexts: [MetaContext])?

    enum State {
        case greeting
        /// The answer to `pending` is on its way.
        case option
        case exportName(String)
        case startingTLS
        case ready
        case over
    }
    var state = State.greeting
    /// Beside the state, so that its lists grow in place.
    var pending = PendingOption(.abort, .request(.abort))

    public init(_ configuration: Configuration = Configuration()) { self.configuration = configuration }

    /// Whether `begin` may be called now.
    public var isReady: Bool { if case .ready = state { true } else { false } }

    /// Takes bytes of the server; call again with what is left until the action is `.read`.
    ///
    /// - Throws: `HandshakeError`; the connection is of no use any more.
    public mutating func receive(_ bytes: RawSpan, output: inout [UInt8]) throws(HandshakeError) -> (consumed: Int, action: Action) {
        var input = WireReader(bytes)
        while true {
            let left = input.byteCount
            var attempt = WireReader(bytes.extracting(droppingFirst: bytes.byteCount - left))
            let step: Action?
            do {
                switch state {
                case .greeting: step = try receiveGreeting(&attempt, output: &output)
                case .option: step = try receiveOptionReply(&attempt, output: &output)
                case .exportName(let name): step = try receiveExport(&attempt, name)
                case .ready:
                    guard left > 0 else { return (bytes.byteCount, .read) }
                    throw HandshakeError.unexpectedBytes
                case .startingTLS:
                    guard left > 0 else { return (bytes.byteCount, .read) }
                    throw HandshakeError.dataInClear
                case .over: return (bytes.byteCount - left, .read)
                }
            } catch WireError.truncated {
                return (bytes.byteCount - left, .read)
            } catch let error as HandshakeError {
                state = .over
                throw error
            } catch {
                state = .over
                throw .badReply("malformed bytes")
            }
            input = attempt
            if let step { return (bytes.byteCount - input.byteCount, step) }
        }
    }

    /// What it means that the server has closed now.
    public func endOfInput() -> HandshakeError {
        switch state {
        case .greeting: .closed(during: "the greeting")
        case .option: .closed(during: pending.option.description)
        case .exportName(let name):
            .closed(during: "EXPORT_NAME '\(name.sanitized())': the server does not know or does not want to serve it")
        case .startingTLS: .closed(during: "the TLS handshake")
        case .ready, .over: .closed(during: "the handshake")
        }
    }

    private mutating func receiveGreeting(_ input: inout WireReader, output: inout [UInt8]) throws -> Action? {
        let magic: UInt64 = try input.read()
        guard magic == Magic.initial else { throw HandshakeError.notAnNBDServer(magic) }
        let second: UInt64 = try input.read()
        switch second {
        case Magic.oldstyle:
            let byteCount: UInt64 = try input.read()
            let flags: UInt32 = try input.read()
            try input.skip(124)
            style = .oldstyle
            guard !configuration.requiresTLS else { throw HandshakeError.needsFixedNewstyle(.startTLS) }
            state = .over
            let info = ExportInfo(name: "", byteCount: byteCount, flags: TransmissionFlags(rawValue: UInt16(truncatingIfNeeded: flags)))
            return .transmit(ClientSession(info: info, mode: .simple, contexts: []))
        case Magic.option:
            serverFlags = HandshakeFlags(rawValue: try input.read())
        default: throw HandshakeError.notAnNBDServer(second)
        }
        var flags: ClientFlags = []
        if serverFlags.contains(.fixedNewstyle) { flags.insert(.fixedNewstyle) }
        if serverFlags.contains(.noZeroes), configuration.asksNoZeroes { flags.insert(.noZeroes) }
        output.appendBigEndian(flags.rawValue)
        style = flags.contains(.fixedNewstyle) ? .fixedNewstyle : .newstyle
        guard !configuration.requiresTLS else {
            guard style == .fixedNewstyle else { throw HandshakeError.needsFixedNewstyle(.startTLS) }
            send(PendingOption(.startTLS, .startTLS), [], output: &output)
            return nil
        }
        return negotiateMode(output: &output)
    }

    /// Continues after `.startTLS`, from now on through TLS. Nothing was agreed before (P-TLS-10).
    public mutating func tlsStarted(output: inout [UInt8]) -> Action {
        guard case .startingTLS = state else { return .read }
        return negotiateMode(output: &output) ?? .read
    }

    private mutating func negotiateMode(output: inout [UInt8]) -> Action? {
        let wanted = style == .fixedNewstyle ? configuration.maximumMode : .simple
        return negotiate(wanted, output: &output)
    }

    /// Asks for `wanted`, or is ready when there is nothing to ask for.
    mutating func negotiate(_ wanted: ReplyMode, output: inout [UInt8]) -> Action? {
        switch wanted {
        case .extended: send(PendingOption(.extendedHeaders, .negotiate(.extended)), [], output: &output)
        case .structured: send(PendingOption(.structuredReply, .negotiate(.structured)), [], output: &output)
        case .simple:
            state = .ready
            return .ready
        }
        return nil
    }

    /// EXPORT_NAME's answer: size, flags, and zeroes unless agreed away (P-OPT-01, P-HS-03).
    private mutating func receiveExport(_ input: inout WireReader, _ name: String) throws -> Action? {
        let byteCount: UInt64 = try input.read()
        let flags = TransmissionFlags(rawValue: try input.read())
        if !(serverFlags.contains(.noZeroes) && configuration.asksNoZeroes) { try input.skip(124) }
        guard flags.contains(.hasFlags) else { throw HandshakeError.badTransmissionFlags(flags.rawValue) }
        return transmit(ExportInfo(name: name, byteCount: byteCount, flags: flags), asked: name)
    }

    mutating func transmit(_ info: ExportInfo, asked: String) -> Action {
        state = .over
        // P-META-12: a selection counts only for the export it was made for.
        let contexts = if let selection, selection.export == asked, mode != .simple { selection.contexts } else { [MetaContext]() }
        return .transmit(ClientSession(info: info, mode: mode, contexts: contexts))
    }

    mutating func send(_ pending: PendingOption, _ data: [UInt8], output: inout [UInt8]) {
        output.appendBigEndian(Magic.option)
        output.appendBigEndian(pending.option.rawValue)
        output.appendBigEndian(UInt32(truncatingIfNeeded: data.count))
        output += data
        self.pending = pending
        state = .option
    }
}
