/// The bytes were not what the layout says.
public enum WireError: Error, Equatable, Sendable {
    /// Fewer bytes than the layout needs.
    case truncated
    case badMagic(UInt64)
    /// A string that is not UTF-8, contains NUL, or is longer than 4096 bytes (P-GEN-01).
    case badString
}

/// Reads big-endian values from the front of some bytes. Every read checks what is left: no length from the wire can reach past the end.
public struct WireReader: ~Escapable {
    @usableFromInline var rest: RawSpan

    @inlinable @_lifetime(copy bytes)
    public init(_ bytes: RawSpan) { rest = bytes }

    /// Bytes not read yet.
    @inlinable public var byteCount: Int { rest.byteCount }

    @inlinable @_lifetime(self: copy self)
    public mutating func read<T: FixedWidthInteger & BitwiseCopyable>(_: T.Type = T.self) throws(WireError) -> T {
        let width = MemoryLayout<T>.size
        guard rest.byteCount >= width else { throw .truncated }
        // SAFETY: `width` bytes are in bounds (guard above); an integer has no invalid bit patterns.
        let value = unsafe rest.unsafeLoadUnaligned(fromByteOffset: 0, as: T.self)
        rest = rest.extracting(droppingFirst: width)
        return T(bigEndian: value)
    }

    /// The next `count` bytes, as a copy.
    @_lifetime(self: copy self)
    public mutating func bytes(_ count: Int) throws(WireError) -> [UInt8] {
        guard count >= 0, rest.byteCount >= count else { throw .truncated }
        let head = rest.extracting(first: count)
        rest = rest.extracting(droppingFirst: count)
        // SAFETY: the pointer does not leave the closure, which copies.
        return unsafe head.withUnsafeBytes { unsafe [UInt8]($0) }
    }

    /// A reader of the next `count` bytes alone.
    @_lifetime(copy self) @_lifetime(self: copy self)
    public mutating func part(_ count: Int) throws(WireError) -> WireReader {
        guard count >= 0, rest.byteCount >= count else { throw .truncated }
        let head = WireReader(rest.extracting(first: count))
        rest = rest.extracting(droppingFirst: count)
        return head
    }

    /// All bytes that are left.
    @_lifetime(self: copy self)
    public mutating func remainder() -> [UInt8] {
        (try? bytes(rest.byteCount)) ?? []
    }

    /// The next `count` bytes as a string of the protocol.
    @_lifetime(self: copy self)
    public mutating func string(_ count: Int) throws(WireError) -> String {
        let bytes = try bytes(count)
        guard let text = String(protocolBytes: bytes) else { throw .badString }
        return text
    }

    @inlinable @_lifetime(self: copy self)
    public mutating func skip(_ count: Int) throws(WireError) {
        guard count >= 0, rest.byteCount >= count else { throw .truncated }
        rest = rest.extracting(droppingFirst: count)
    }
}

extension String {
    /// The text in `bytes`, or nil if they break the string rule (P-GEN-01).
    public init?(protocolBytes bytes: [UInt8]) {
        guard bytes.count <= stringByteCountLimit, !bytes.contains(0), let text = String(validating: bytes, as: UTF8.self) else {
            return nil
        }
        self = text
    }

    /// Fit to be shown to people and to logs: control characters replaced, at most `limit` characters (P-GEN-06, S-LIM-06).
    public func sanitized(limit: Int = 80) -> String {
        var result = String.UnicodeScalarView()
        for scalar in unicodeScalars.prefix(limit) {
            switch scalar.properties.generalCategory {
            case .control, .format, .lineSeparator, .paragraphSeparator, .surrogate, .privateUse, .unassigned: result.append("?")
            default: result.append(scalar)
            }
        }
        return String(result) + (unicodeScalars.count > limit ? "..." : "")
    }
}
