/// What the server offers in its greeting.
public struct HandshakeFlags: OptionSet, Hashable, Sendable {
    public let rawValue: UInt16
    public init(rawValue: UInt16) { self.rawValue = rawValue }

    public static let fixedNewstyle = HandshakeFlags(rawValue: 1 << 0)
    public static let noZeroes = HandshakeFlags(rawValue: 1 << 1)
}

/// What the client took of it.
public struct ClientFlags: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    public static let fixedNewstyle = ClientFlags(rawValue: 1 << 0)
    public static let noZeroes = ClientFlags(rawValue: 1 << 1)
    public static let known: ClientFlags = [.fixedNewstyle, .noZeroes]
}

/// What an export can do (P-FLG).
public struct TransmissionFlags: OptionSet, Hashable, Sendable {
    public let rawValue: UInt16
    public init(rawValue: UInt16) { self.rawValue = rawValue }

    public static let hasFlags = TransmissionFlags(rawValue: 1 << 0)
    public static let readOnly = TransmissionFlags(rawValue: 1 << 1)
    public static let flush = TransmissionFlags(rawValue: 1 << 2)
    public static let fua = TransmissionFlags(rawValue: 1 << 3)
    public static let rotational = TransmissionFlags(rawValue: 1 << 4)
    public static let trim = TransmissionFlags(rawValue: 1 << 5)
    public static let writeZeroes = TransmissionFlags(rawValue: 1 << 6)
    public static let df = TransmissionFlags(rawValue: 1 << 7)
    public static let multiConn = TransmissionFlags(rawValue: 1 << 8)
    public static let resize = TransmissionFlags(rawValue: 1 << 9)
    public static let cache = TransmissionFlags(rawValue: 1 << 10)
    public static let fastZero = TransmissionFlags(rawValue: 1 << 11)
    public static let blockStatusPayload = TransmissionFlags(rawValue: 1 << 12)
}

/// How a command is to be done.
public struct CommandFlags: OptionSet, Hashable, Sendable {
    public let rawValue: UInt16
    public init(rawValue: UInt16) { self.rawValue = rawValue }

    public static let fua = CommandFlags(rawValue: 1 << 0)
    public static let noHole = CommandFlags(rawValue: 1 << 1)
    public static let df = CommandFlags(rawValue: 1 << 2)
    public static let reqOne = CommandFlags(rawValue: 1 << 3)
    public static let fastZero = CommandFlags(rawValue: 1 << 4)
    public static let payloadLength = CommandFlags(rawValue: 1 << 5)
}

/// Flags of a structured or extended reply chunk.
public struct ChunkFlags: OptionSet, Hashable, Sendable {
    public let rawValue: UInt16
    public init(rawValue: UInt16) { self.rawValue = rawValue }

    /// The last chunk of this reply.
    public static let done = ChunkFlags(rawValue: 1 << 0)
}
