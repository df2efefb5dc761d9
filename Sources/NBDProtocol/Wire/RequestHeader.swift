/// The fixed-size head of a client's request in the transmission phase.
///
///     compact    0 magic(4)  4 flags(2)  6 type(2)  8 cookie(8)  16 offset(8)  24 length(4)      (28 bytes, big-endian)
///     extended   0 magic(4)  4 flags(2)  6 type(2)  8 cookie(8)  16 offset(8)  24 length(8)      (32 bytes)
///
/// Spec: proto.md, "Request message"; PROTOCOL 2, P-REQ-01, P-EXT-06.
public struct RequestHeader: Equatable, Sendable {
    public var flags: CommandFlags
    public var command: Command
    /// Chosen by the client; copied verbatim into every reply to this request.
    public var cookie: UInt64
    /// Where the range begins, in bytes from the start of the export. Unchecked.
    public var offset: UInt64
    /// Bytes concerned; with `.payloadLength` in extended mode, bytes that follow the header. Unchecked.
    public var length: UInt64

    @inlinable
    public init(flags: CommandFlags = [], command: Command, cookie: UInt64, offset: UInt64 = 0, length: UInt64 = 0) {
        self.flags = flags
        self.command = command
        self.cookie = cookie
        self.offset = offset
        self.length = length
    }

    /// Size in bytes of a header in this mode.
    @inlinable public static func byteCount(_ mode: ReplyMode) -> Int { mode == .extended ? 32 : 28 }

    /// Reads a header.
    ///
    /// Accepts unknown commands and flags: whether they are allowed depends on what was negotiated, which a codec cannot know (see
    /// `RequestRules`).
    ///
    /// - Throws: `.truncated` if the bytes are too few; `.badMagic`.
    @inlinable
    public init(from input: inout WireReader, mode: ReplyMode) throws(WireError) {
        guard input.byteCount >= Self.byteCount(mode) else { throw .truncated }
        let magic: UInt32 = try input.read()
        guard magic == (mode == .extended ? Magic.extendedRequest : Magic.request) else { throw .badMagic(UInt64(magic)) }
        flags = CommandFlags(rawValue: try input.read())
        command = Command(rawValue: try input.read())
        cookie = try input.read()
        offset = try input.read()
        length = mode == .extended ? try input.read() : UInt64(try input.read(UInt32.self))
    }

    /// Writes the header; in the compact modes only the low 32 bits of `length` exist.
    @inlinable
    public func encode(into output: inout OutputRawSpan, mode: ReplyMode) {
        output.appendBigEndian(mode == .extended ? Magic.extendedRequest : Magic.request)
        output.appendBigEndian(flags.rawValue)
        output.appendBigEndian(command.rawValue)
        output.appendBigEndian(cookie)
        output.appendBigEndian(offset)
        if mode == .extended {
            output.appendBigEndian(length)
        } else {
            output.appendBigEndian(UInt32(truncatingIfNeeded: length))
        }
    }
}
