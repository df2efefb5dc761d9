public import Block

/// A filter that turns writes of nothing but zeroes into `writeZeroes`, which cost less and may take no space.
///
/// A write that is only partly zero goes through as it is: splitting it would make one request many.
public final class DetectZeroes: BlockDevice {
    public let info: DeviceInfo
    /// What the filter stands on.
    public let device: any BlockDevice
    private let mayUnmap: Bool

    /// - Parameter mayUnmap: the zeroes may become holes.
    public init(_ device: any BlockDevice, mayUnmap: Bool) {
        self.device = device
        self.mayUnmap = mayUnmap
        info = device.info
    }

    public func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        try await device.read(at: offset, into: &buffer)
    }

    public func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        guard device.info.abilities.zeroes == .native, bytes.byteCount > 0, bytes.isZero,
            let range = ByteRange(start: offset, count: UInt64(bytes.byteCount))
        else {
            return try await device.write(at: offset, from: bytes, options)
        }
        try await device.writeZeroes(range, mayUnmap ? options.union(.mayUnmap) : options.subtracting(.mayUnmap))
    }

    public func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        try await device.writeZeroes(range, options)
    }

    public func discard(_ range: ByteRange) async throws(BlockError) {
        try await device.discard(range)
    }

    public func flush() async throws(BlockError) {
        try await device.flush()
    }

    public func prefetch(_ range: ByteRange) async throws(BlockError) {
        try await device.prefetch(range)
    }

    public func status(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        try await device.status(of: range, into: &extents)
    }

    public func allocationDepth(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        try await device.allocationDepth(of: range, into: &extents)
    }

    public func makeMapper() -> sending (any RangeMapper)? {
        guard let mapper = device.makeMapper() else { return nil }
        return ReadOnlyMapper(mapper)
    }

    public func settle() async { await device.settle() }

    public func close() async {
        await device.close()
    }
}

extension DetectZeroes: BitmapOwner {
    /// Those of the device, which records what it is asked to write.
    public var bitmaps: [DirtyBitmap] { (device as? any BitmapOwner)?.bitmaps ?? [] }
}

/// Maps reads only: writes must be looked at.
private final class ReadOnlyMapper: RangeMapper {
    private let mapper: any RangeMapper

    init(_ mapper: any RangeMapper) {
        self.mapper = mapper
    }

    func mapRead(_ range: ByteRange, into segments: inout SegmentList) -> Bool {
        mapper.mapRead(range, into: &segments)
    }

    func mapWrite(_ range: ByteRange, into segments: inout SegmentList) -> Bool { false }

    var placesAreFixed: Bool { mapper.placesAreFixed }

    func released() { mapper.released() }
}
