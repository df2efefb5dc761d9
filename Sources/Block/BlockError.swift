/// Why one request failed. It never reaches further than that request.
///
/// `kind` is what programs decide on and what is mapped to an NBD error; `detail` is for people and ends up, shortened, in a structured
/// error reply: it must not name files of the host (S-REP-12).
public struct BlockError: Error, Equatable, Sendable {
    /// The stable, matchable part. Host error numbers are mapped to it by name, since their values differ by platform (P-ERR-09).
    public enum Kind: Equatable, Sendable, CaseIterable {
        /// The medium failed, or the host gave an error that is not the client's fault.
        case inputOutput
        /// No room: ENOSPC, EDQUOT, EFBIG.
        case noSpace
        /// The device, or the host's file, may not be written: EROFS, EPERM, EACCES.
        case readOnly
        /// Bytes outside of the device.
        case outOfRange
        /// The request makes no sense to this device.
        case invalid
        /// Asked to be fast (`WriteOptions.fast`) and cannot be; nothing was changed. For optional operations: not offered.
        case unsupported
        /// Longer than the device takes in one piece.
        case tooLarge
        /// The host has no memory for it.
        case noMemory
        /// The device is being stopped.
        case shuttingDown
    }

    public var kind: Kind
    public var detail: String

    public init(_ kind: Kind, _ detail: String) {
        self.kind = kind
        self.detail = detail
    }

    @inline(never) public static func outOfRange(offset: UInt64, count: UInt64, size: UInt64) -> BlockError {
        BlockError(.outOfRange, "\(count) bytes at \(offset) do not fit in a device of \(size)")
    }
}

extension BlockError: CustomStringConvertible {
    public var description: String { detail }
}
