/// What a stranger may ask of the handshake before it is over. Time is the shell's business: it has the clock.
public struct HandshakeLimits: Equatable, Sendable {
    /// Longest option that is read; a longer one is discarded and refused with ERR_TOO_BIG (P-OPT-17). The largest useful one, an INFO
    /// with a full name and every info type there is, has 135,168 bytes.
    public var optionByteCountLimit: UInt32 = 256 << 10
    /// Longest option that is discarded rather than answered by closing (S-OPT-03).
    public var discardByteCountLimit: UInt32 = 32 << 20
    /// Options per connection (S-OPT-10). Once LIST was answered, eight more for each export it showed, for clients that ask for each.
    public var optionCountLimit = 64
    /// Queries of one LIST_META_CONTEXT or SET_META_CONTEXT (S-META-24); libnbd sends 64 at most.
    public var queryCountLimit = 1024

    public init() {}
}

/// Why a connection is closed without the client having asked for it. The reach is one connection.
public enum ProtocolViolation: Error, Equatable, Sendable {
    case unknownClientFlags(UInt32)
    case badOptionMagic(UInt64)
    case badRequestMagic(UInt64)
    case optionTooLong(OptionType, byteCount: UInt32)
    case tooManyOptions
    /// A client without fixed newstyle may only send EXPORT_NAME (P-HS-08).
    case optionBeforeFixedNewstyle(OptionType)
    /// EXPORT_NAME that cannot be honoured: there is no error reply for it (P-OPT-02).
    case exportNameRefused(String)
    case payloadTooLong(byteCount: UInt64)
    /// Bytes in clear behind STARTTLS, which somebody wants to be taken for encrypted ones (P-TLS-09, P-TLS-11).
    case dataInClearWithStartTLS
    /// The TLS handshake failed, or the peer that it proved may not connect; with the reason.
    case tlsFailed(String)
    case handshakeTimeout
    /// The bytes ended in the middle of a message.
    case truncated
    /// Held memory that others wait for, without moving (see `MemoryBudget`).
    case stalled
    /// Hardly moved for a long time in the middle of a message or of replies to it.
    case tooSlow
    /// Its peer has as many connections as one may have.
    case tooManyConnections
    /// Its handshake was the oldest when others wanted to begin theirs.
    case crowdedOut
    /// The rules of the server do not let this client in.
    case notAdmitted
}

extension ProtocolViolation: CustomStringConvertible {
    public var description: String {
        switch self {
        case .unknownClientFlags(let flags): "unknown client flags 0x\(String(flags, radix: 16))"
        case .badOptionMagic(let magic): "bad option magic 0x\(String(magic, radix: 16))"
        case .badRequestMagic(let magic): "bad request magic 0x\(String(magic, radix: 16))"
        case .optionTooLong(let option, let count): "option \(option) of \(count) bytes"
        case .tooManyOptions: "too many options"
        case .optionBeforeFixedNewstyle(let option): "option \(option) from a client without fixed newstyle"
        case .exportNameRefused(let name): "EXPORT_NAME '\(name.sanitized())' refused"
        case .payloadTooLong(let count): "request payload of \(count) bytes"
        case .dataInClearWithStartTLS: "bytes in clear behind STARTTLS"
        case .tlsFailed(let reason): "TLS: \(reason)"
        case .handshakeTimeout: "handshake not finished in time"
        case .truncated: "connection ended in the middle of a message"
        case .tooSlow: "hardly moved for too long"
        case .tooManyConnections: "its peer has too many connections"
        case .crowdedOut: "handshake not finished when others wanted to begin"
        case .notAdmitted: "not let in by the server's rules"
        case .stalled: "made no progress while others wait for memory"
        }
    }
}
