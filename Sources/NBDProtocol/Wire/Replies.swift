/// A simple reply: 0 magic(4)  4 error(4)  8 cookie(8), then the data of a successful READ (S-REP-01).
public struct SimpleReply: Equatable, Sendable {
    public static let byteCount = 16
    /// nil: success.
    public var error: NBDError?
    public var cookie: UInt64

    @inlinable
    public init(cookie: UInt64, error: NBDError? = nil) {
        self.error = error
        self.cookie = cookie
    }

    @inlinable
    public func encode(into output: inout OutputRawSpan) {
        output.appendBigEndian(Magic.simpleReply)
        output.appendBigEndian(error?.rawValue ?? 0)
        output.appendBigEndian(cookie)
    }

    /// Reads what follows the magic.
    @inlinable
    public init(afterMagic input: inout WireReader) throws(WireError) {
        let code: UInt32 = try input.read()
        error = code == 0 ? nil : NBDError(rawValue: code)
        cookie = try input.read()
    }
}

/// The head of a structured (20 bytes) or extended (32 bytes) reply chunk (S-REP-03, P-EXT-10).
///
///     structured  0 0x668E33EF(4)  4 flags(2)  6 type(2)  8 cookie(8)  16 length(4)
///     extended    0 0x6E8A278C(4)  4 flags(2)  6 type(2)  8 cookie(8)  16 offset(8)  24 length(8)
public struct ChunkHeader: Equatable, Sendable {
    public var flags: ChunkFlags
    public var type: ChunkType
    public var cookie: UInt64
    /// Extended only: repeats the offset of the request, also when the payload holds another one.
    public var requestOffset: UInt64
    /// Bytes of payload that follow.
    public var byteCount: UInt64

    @inlinable
    public init(_ type: ChunkType, flags: ChunkFlags = [], cookie: UInt64, requestOffset: UInt64, byteCount: UInt64) {
        self.flags = flags
        self.type = type
        self.cookie = cookie
        self.requestOffset = requestOffset
        self.byteCount = byteCount
    }

    @inlinable public static func byteCount(_ mode: ReplyMode) -> Int { mode == .extended ? 32 : 20 }

    /// - Precondition: `mode` is not `.simple`; a structured chunk is shorter than 4 GiB.
    @inlinable
    public func encode(into output: inout OutputRawSpan, mode: ReplyMode) {
        output.appendBigEndian(mode == .extended ? Magic.extendedReply : Magic.structuredReply)
        output.appendBigEndian(flags.rawValue)
        output.appendBigEndian(type.rawValue)
        output.appendBigEndian(cookie)
        if mode == .extended {
            output.appendBigEndian(requestOffset)
            output.appendBigEndian(byteCount)
        } else {
            output.appendBigEndian(UInt32(byteCount))
        }
    }

    /// Reads what follows the magic.
    @inlinable
    public init(afterMagic input: inout WireReader, mode: ReplyMode) throws(WireError) {
        flags = ChunkFlags(rawValue: try input.read())
        type = ChunkType(rawValue: try input.read())
        cookie = try input.read()
        requestOffset = mode == .extended ? try input.read() : 0
        byteCount = mode == .extended ? try input.read() : UInt64(try input.read(UInt32.self))
    }
}
