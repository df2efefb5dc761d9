/// The sizes of NBD_INFO_BLOCK_SIZE, in bytes (P-SIZE-01…03).
public struct BlockSizes: Equatable, Sendable {
    /// A power of two, 1…65536.
    public var minimum: UInt32
    /// A power of two, at least 512 and `minimum`.
    public var preferred: UInt32
    /// At least `preferred`, a multiple of `minimum`.
    public var maximumPayload: UInt32

    public init(minimum: UInt32 = 1, preferred: UInt32 = 4096, maximumPayload: UInt32 = payloadByteCountLimit) {
        self.minimum = minimum
        self.preferred = preferred
        self.maximumPayload = maximumPayload
    }
}

/// A metadata context that a client has selected.
public struct MetaContext: Equatable, Hashable, Sendable {
    /// Constant for the export; opaque to clients (S-META-21).
    public var id: UInt32
    /// "namespace:leaf", such as `base:allocation`.
    public var name: String

    public init(id: UInt32, name: String) {
        self.id = id
        self.name = name
    }

    public static let baseAllocation = MetaContext(id: 0, name: "base:allocation")
}

/// What the handshake may tell of an export.
public struct ExportDescription: Equatable, Sendable {
    /// Identity for the life of the process: never used again, even when an export of the same name comes back (S-META-26).
    public var id: UInt64
    /// Canonical name: what LIST shows and NBD_INFO_NAME answers.
    public var name: String
    /// Text for people, or empty.
    public var text: String
    public var byteCount: UInt64
    /// Without `.df` and `.blockStatusPayload`, which depend on what the client has agreed to.
    public var flags: TransmissionFlags
    public var blockSizes: BlockSizes
    /// What may be selected, in the order of replies (S-META-20).
    public var contexts: [MetaContext]
    /// TRIM and WRITE_ZEROES are not for this client: they are answered EPERM, and not EINVAL as what the device cannot do.
    public var isZeroingForbidden = false
    /// In clear, this export does not exist (SELECTIVETLS, P-TLS-08).
    public var requiresTLS: Bool

    public init(
        id: UInt64, name: String, text: String = "", byteCount: UInt64, flags: TransmissionFlags, blockSizes: BlockSizes = BlockSizes(),
        contexts: [MetaContext] = [.baseAllocation], requiresTLS: Bool = false
    ) {
        self.id = id
        self.name = name
        self.text = text
        self.byteCount = byteCount
        self.flags = flags
        self.blockSizes = blockSizes
        self.contexts = contexts
        self.requiresTLS = requiresTLS
    }
}

/// Which headers and replies the two sides have agreed on.
public enum ReplyMode: Equatable, Sendable {
    case simple, structured, extended
}

/// What a handshake has agreed on: everything the transmission phase needs to know.
public struct Session: Equatable, Sendable {
    public var export: ExportDescription
    /// As told to the client, with `.df` and `.blockStatusPayload` decided.
    public var flags: TransmissionFlags
    public var mode: ReplyMode
    /// In the order of the export's contexts; empty: BLOCK_STATUS is refused.
    public var contexts: [MetaContext]

    public init(export: ExportDescription, flags: TransmissionFlags, mode: ReplyMode, contexts: [MetaContext]) {
        self.export = export
        self.flags = flags
        self.mode = mode
        self.contexts = contexts
    }
}
