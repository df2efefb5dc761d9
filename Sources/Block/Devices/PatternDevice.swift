/// A read-only device whose bytes tell where they are: each aligned 8-byte word is its own offset, big-endian.
///
///     offset  0                 8                 16
///             0000000000000000  0000000000000008  0000000000000010  …
///
/// The pattern is that of nbdkit's pattern plugin, so that the two can be compared.
public final class PatternDevice: BlockDevice {
    public let info: DeviceInfo

    public init(byteCount: UInt64) {
        info = DeviceInfo(byteCount: byteCount, isReadOnly: true)
    }

    /// The byte at `offset`.
    public static func byte(at offset: UInt64) -> UInt8 {
        UInt8(truncatingIfNeeded: (offset & ~7) >> (8 * (7 - (offset & 7))))
    }

    public func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        var index = 0
        while index < buffer.byteCount {
            let position = offset + UInt64(index)
            if position & 7 == 0, index + 8 <= buffer.byteCount {
                buffer.storeBytes(of: position.bigEndian, toByteOffset: index, as: UInt64.self)
                index += 8
            } else {
                buffer.storeBytes(of: Self.byte(at: position), toByteOffset: index, as: UInt8.self)
                index += 1
            }
        }
    }
}
