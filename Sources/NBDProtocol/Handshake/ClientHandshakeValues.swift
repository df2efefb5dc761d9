/// How the server opened the conversation.
public enum HandshakeStyle: String, Sendable {
    case oldstyle
    case newstyle
    case fixedNewstyle = "newstyle-fixed"
}

/// What a server has told of an export.
public struct ExportInfo: Equatable, Sendable {
    /// The canonical name if the server told one, else the one asked for.
    public var name: String
    /// nil: none was told.
    public var text: String?
    public var byteCount: UInt64
    public var flags: TransmissionFlags
    /// nil: none were told, so defaults hold (P-SIZE-05).
    public var blockSizes: BlockSizes?

    public init(name: String, text: String? = nil, byteCount: UInt64, flags: TransmissionFlags, blockSizes: BlockSizes? = nil) {
        self.name = name
        self.text = text
        self.byteCount = byteCount
        self.flags = flags
        self.blockSizes = blockSizes
    }
}

/// What a client's handshake has agreed on.
public struct ClientSession: Equatable, Sendable {
    public var info: ExportInfo
    public var mode: ReplyMode
    /// Selected for this export, with the ids the server gave them.
    public var contexts: [MetaContext]

    public init(info: ExportInfo, mode: ReplyMode, contexts: [MetaContext]) {
        self.info = info
        self.mode = mode
        self.contexts = contexts
    }
}

/// One line of NBD_OPT_LIST.
public struct ListedExport: Equatable, Sendable {
    public var name: String
    /// Text for people, or empty.
    public var text: String

    public init(name: String, text: String = "") {
        self.name = name
        self.text = text
    }
}

/// The server does not want to do what an option asked for. The conversation goes on.
public struct RefusedOption: Error, Equatable, Sendable, CustomStringConvertible {
    public var option: OptionType
    public var reply: OptionReplyType
    /// The server's words, made fit to be shown; may be empty.
    public var text: String

    public init(option: OptionType, reply: OptionReplyType, text: String = "") {
        self.option = option
        self.reply = reply
        self.text = text
    }

    public var description: String { "the server refused \(option): \(reply)" + (text.isEmpty ? "" : " (\(text))") }
}

/// A reply as it came, for options that we do not interpret.
public struct RawOptionReply: Equatable, Sendable {
    public var type: OptionReplyType
    public var data: [UInt8]

    public init(type: OptionReplyType, data: [UInt8]) {
        self.type = type
        self.data = data
    }
}

/// The server broke the protocol, or `begin` was called at the wrong time. The connection is lost in either case but `.notReady`,
/// `.needsFixedNewstyle` and `.badName`.
public enum HandshakeError: Error, Equatable, Sendable, CustomStringConvertible {
    case notAnNBDServer(UInt64)
    case badReplyMagic(UInt64)
    /// A reply to another option than the one asked.
    case wrongOption(asked: OptionType, answered: OptionType)
    case unexpectedReply(OptionType, OptionReplyType)
    case replyTooLong(OptionType, byteCount: UInt32)
    case tooManyReplies(OptionType)
    /// What is wrong, in a few words.
    case badReply(String)
    /// HAS_FLAGS is missing (P-FLG-01).
    case badTransmissionFlags(UInt16)
    /// Bytes arrived although nothing was asked.
    case unexpectedBytes
    case closed(during: String)
    /// TLS is a must for us, and the server does not do it.
    case tlsRefused(RefusedOption)
    /// Bytes in clear behind the ACK of STARTTLS: somebody wants them to be taken for encrypted ones (P-TLS-11).
    case dataInClear
    /// `begin` while an option is under way, or before the greeting.
    case notReady
    /// P-HS-08: such a server understands EXPORT_NAME only.
    case needsFixedNewstyle(OptionType)
    /// A name or query of more than 4096 bytes or with a NUL.
    case badName

    public var description: String {
        switch self {
        case .notAnNBDServer(let magic): "not an NBD server: it greets with 0x\(String(magic, radix: 16))"
        case .badReplyMagic(let magic): "the server's option reply begins with 0x\(String(magic, radix: 16))"
        case .wrongOption(let asked, let answered): "the server answered \(answered) when asked \(asked)"
        case .unexpectedReply(let option, let reply): "the server answered \(option) with \(reply)"
        case .replyTooLong(let option, let byteCount): "the server's answer to \(option) has \(byteCount) bytes"
        case .tooManyReplies(let option): "the server answers \(option) without end"
        case .badReply(let what): "the server sent a bad reply: \(what)"
        case .badTransmissionFlags(let flags): "the server's transmission flags 0x\(String(flags, radix: 16)) lack HAS_FLAGS"
        case .unexpectedBytes: "the server sent bytes nobody asked for"
        case .closed(let phase): "the server closed the connection during \(phase)"
        case .tlsRefused(let refusal): "no TLS with this server: \(refusal)"
        case .dataInClear: "the server sent bytes in clear behind its ACK of STARTTLS"
        case .notReady: "another option is under way"
        case .needsFixedNewstyle(let option): "the server is too old for \(option)"
        case .badName: "a name or query is longer than 4096 bytes or contains NUL"
        }
    }
}
