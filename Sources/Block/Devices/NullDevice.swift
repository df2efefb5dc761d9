/// Reads zeroes, and forgets what is written. Useful for measuring everything but a disk.
public final class NullDevice: BlockDevice {
    public let info: DeviceInfo

    public init(byteCount: UInt64) {
        info = DeviceInfo(byteCount: byteCount, abilities: .allNative)
    }

    public func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        buffer.fillWithZeroes()
    }

    public func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {}

    public func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {}

    public func status(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        extents.append(range.count, [.hole, .zero])
    }

    public func makeMapper() -> sending (any RangeMapper)? { NullMapper() }
}

private final class NullMapper: RangeMapper {
    func mapRead(_ range: ByteRange, into segments: inout SegmentList) -> Bool {
        segments.append(.zeroes(count: Int(range.count)))
        return true
    }

    func mapWrite(_ range: ByteRange, into segments: inout SegmentList) -> Bool { false }
}
