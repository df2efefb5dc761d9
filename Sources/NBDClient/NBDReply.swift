public import NBDProtocol

/// A complete reply to one request.
public struct NBDReply: Sendable {
    public var cookie: UInt64
    /// In the order of arrival; empty: success.
    public var errors: [ReplyError] = []
    /// Of a successful READ: exactly the bytes asked for, holes as zeroes. After an error: what had come in order, the rest as zeroes or absent.
    public var data: [UInt8] = []
    /// In the order of arrival; a simple reply with data counts as one chunk.
    public var chunks: [NBDChunk] = []
    /// The answer was (or ended with) a simple reply.
    public var isSimple = false

    init(cookie: UInt64) { self.cookie = cookie }

    public var error: ReplyError? { errors.first }

    /// Extents of a BLOCK_STATUS, by context id.
    public var extents: [UInt32: [StatusExtent]] {
        var result: [UInt32: [StatusExtent]] = [:]
        for case .extents(let context, let extents) in chunks { result[context] = extents }
        return result
    }
}

/// What one chunk told.
public enum NBDChunk: Equatable, Sendable {
    case data(offset: UInt64, byteCount: UInt64)
    case hole(offset: UInt64, byteCount: UInt64)
    case extents(context: UInt32, [StatusExtent])
    case error(ReplyError)
}

/// Why a connection is lost, or was never there. A request that merely failed throws `ReplyError`, an option `RefusedOption`.
public enum NBDClientError: Error, Equatable, Sendable, CustomStringConvertible {
    case cannotConnect(String)
    case handshake(HandshakeError)
    case violation(ReplyViolation)
    /// In the middle of what; empty: between replies.
    case closed(String)
    /// TLS failed, or the server is not the one it must be; with the reason.
    case tls(String)
    /// While waiting for what.
    case timedOut(String)
    case unsupported(String)
    /// A reply to a READ beyond `readByteCountLimit`.
    case replyTooLarge(UInt64)
    /// A request before an export was chosen, or an option afterwards.
    case wrongPhase
    /// The cookie of a request that is still waiting.
    case cookieInUse(UInt64)
    case system(String)

    public var description: String {
        switch self {
        case .cannotConnect(let reason): "cannot connect to \(reason)"
        case .handshake(let error): error.description
        case .violation(let violation): violation.description
        case .closed(let phase): "the connection is closed" + (phase.isEmpty ? "" : " (\(phase))")
        case .tls(let reason): "TLS: \(reason)"
        case .timedOut(let phase): "timed out: \(phase)"
        case .unsupported(let what): "not supported: \(what)"
        case .replyTooLarge(let count): "the server answers a READ of \(count) bytes, which is more than we hold"
        case .wrongPhase: "not possible in this phase of the connection"
        case .cookieInUse(let cookie): "cookie \(cookie) belongs to a request on its way"
        case .system(let reason): reason
        }
    }
}
