/// A number of the protocol with a name. Values that we do not know keep their number: what is allowed depends on what was negotiated,
/// which the number cannot know.
public protocol NamedNumber: RawRepresentable, Hashable, Sendable, CustomStringConvertible
where RawValue: FixedWidthInteger & Sendable {
    static var names: [(Self, String)] { get }
}

extension NamedNumber {
    /// The name the NBD specification gives it, or its number.
    public var description: String {
        Self.names.first { $0.0 == self }?.1 ?? "unknown \(rawValue)"
    }
}

/// `NBD_OPT_*`.
public struct OptionType: NamedNumber {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    public static let exportName = OptionType(rawValue: 1)
    public static let abort = OptionType(rawValue: 2)
    public static let list = OptionType(rawValue: 3)
    public static let startTLS = OptionType(rawValue: 5)
    public static let info = OptionType(rawValue: 6)
    public static let go = OptionType(rawValue: 7)
    public static let structuredReply = OptionType(rawValue: 8)
    public static let listMetaContext = OptionType(rawValue: 9)
    public static let setMetaContext = OptionType(rawValue: 10)
    public static let extendedHeaders = OptionType(rawValue: 11)

    public static var names: [(OptionType, String)] {
        [
            (.exportName, "EXPORT_NAME"), (.abort, "ABORT"), (.list, "LIST"), (OptionType(rawValue: 4), "PEEK_EXPORT"),
            (.startTLS, "STARTTLS"), (.info, "INFO"), (.go, "GO"), (.structuredReply, "STRUCTURED_REPLY"),
            (.listMetaContext, "LIST_META_CONTEXT"), (.setMetaContext, "SET_META_CONTEXT"), (.extendedHeaders, "EXTENDED_HEADERS"),
        ]
    }
}

/// `NBD_REP_*`: the answer to an option.
public struct OptionReplyType: NamedNumber {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    public static let ack = OptionReplyType(rawValue: 1)
    public static let server = OptionReplyType(rawValue: 2)
    public static let info = OptionReplyType(rawValue: 3)
    public static let metaContext = OptionReplyType(rawValue: 4)

    public static let unsupported = OptionReplyType(rawValue: 0x8000_0001)
    public static let policy = OptionReplyType(rawValue: 0x8000_0002)
    public static let invalid = OptionReplyType(rawValue: 0x8000_0003)
    public static let platform = OptionReplyType(rawValue: 0x8000_0004)
    public static let tlsRequired = OptionReplyType(rawValue: 0x8000_0005)
    public static let unknown = OptionReplyType(rawValue: 0x8000_0006)
    public static let shutdown = OptionReplyType(rawValue: 0x8000_0007)
    public static let blockSizeRequired = OptionReplyType(rawValue: 0x8000_0008)
    public static let tooBig = OptionReplyType(rawValue: 0x8000_0009)
    public static let extendedHeadersRequired = OptionReplyType(rawValue: 0x8000_000A)

    /// Whether this ends an option with a refusal.
    public var isError: Bool { rawValue & 0x8000_0000 != 0 }

    public static var names: [(OptionReplyType, String)] {
        [
            (.ack, "ACK"), (.server, "SERVER"), (.info, "INFO"), (.metaContext, "META_CONTEXT"), (.unsupported, "ERR_UNSUP"),
            (.policy, "ERR_POLICY"), (.invalid, "ERR_INVALID"), (.platform, "ERR_PLATFORM"), (.tlsRequired, "ERR_TLS_REQD"),
            (.unknown, "ERR_UNKNOWN"), (.shutdown, "ERR_SHUTDOWN"), (.blockSizeRequired, "ERR_BLOCK_SIZE_REQD"),
            (.tooBig, "ERR_TOO_BIG"), (.extendedHeadersRequired, "ERR_EXT_HEADER_REQD"),
        ]
    }
}

/// `NBD_INFO_*`: a fact about an export.
public struct InfoType: NamedNumber {
    public let rawValue: UInt16
    public init(rawValue: UInt16) { self.rawValue = rawValue }

    public static let export = InfoType(rawValue: 0)
    public static let name = InfoType(rawValue: 1)
    public static let description = InfoType(rawValue: 2)
    public static let blockSize = InfoType(rawValue: 3)

    public static var names: [(InfoType, String)] {
        [(.export, "EXPORT"), (.name, "NAME"), (.description, "DESCRIPTION"), (.blockSize, "BLOCK_SIZE")]
    }
}

/// `NBD_CMD_*`.
public struct Command: NamedNumber {
    public let rawValue: UInt16
    public init(rawValue: UInt16) { self.rawValue = rawValue }

    public static let read = Command(rawValue: 0)
    public static let write = Command(rawValue: 1)
    public static let disconnect = Command(rawValue: 2)
    public static let flush = Command(rawValue: 3)
    public static let trim = Command(rawValue: 4)
    public static let cache = Command(rawValue: 5)
    public static let writeZeroes = Command(rawValue: 6)
    public static let blockStatus = Command(rawValue: 7)

    /// Changes the contents of the export.
    public var writes: Bool { self == .write || self == .trim || self == .writeZeroes }

    public static var names: [(Command, String)] {
        [
            (.read, "READ"), (.write, "WRITE"), (.disconnect, "DISC"), (.flush, "FLUSH"), (.trim, "TRIM"), (.cache, "CACHE"),
            (.writeZeroes, "WRITE_ZEROES"), (.blockStatus, "BLOCK_STATUS"), (Command(rawValue: 8), "RESIZE"),
        ]
    }
}

/// `NBD_REPLY_TYPE_*`.
public struct ChunkType: NamedNumber {
    public let rawValue: UInt16
    public init(rawValue: UInt16) { self.rawValue = rawValue }

    public static let none = ChunkType(rawValue: 0)
    public static let offsetData = ChunkType(rawValue: 1)
    public static let offsetHole = ChunkType(rawValue: 2)
    public static let blockStatus = ChunkType(rawValue: 5)
    public static let blockStatusExtended = ChunkType(rawValue: 6)
    public static let error = ChunkType(rawValue: 0x8001)
    public static let errorOffset = ChunkType(rawValue: 0x8002)

    public var isError: Bool { rawValue & 0x8000 != 0 }

    public static var names: [(ChunkType, String)] {
        [
            (.none, "NONE"), (.offsetData, "OFFSET_DATA"), (.offsetHole, "OFFSET_HOLE"), (.blockStatus, "BLOCK_STATUS"),
            (.blockStatusExtended, "BLOCK_STATUS_EXT"), (.error, "ERROR"), (.errorOffset, "ERROR_OFFSET"),
        ]
    }
}

/// The only error values on the wire (P-ERR-01). They are constants of the protocol, not the host's error numbers.
public struct NBDError: NamedNumber {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    public static let notPermitted = NBDError(rawValue: 1)
    public static let inputOutput = NBDError(rawValue: 5)
    public static let noMemory = NBDError(rawValue: 12)
    public static let invalid = NBDError(rawValue: 22)
    public static let noSpace = NBDError(rawValue: 28)
    public static let overflow = NBDError(rawValue: 75)
    public static let notSupported = NBDError(rawValue: 95)
    public static let shutdown = NBDError(rawValue: 108)

    public static var names: [(NBDError, String)] {
        [
            (.notPermitted, "EPERM"), (.inputOutput, "EIO"), (.noMemory, "ENOMEM"), (.invalid, "EINVAL"), (.noSpace, "ENOSPC"),
            (.overflow, "EOVERFLOW"), (.notSupported, "ENOTSUP"), (.shutdown, "ESHUTDOWN"),
        ]
    }
}
