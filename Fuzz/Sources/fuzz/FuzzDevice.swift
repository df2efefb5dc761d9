import Block

/// A device whose contents are known without being stored: holes in every third granule, elsewhere a byte that follows from its place.
/// Writes are checked for staying inside and are otherwise forgotten, so a READ has the same right answer whenever it runs.
final class FuzzDevice: BlockDevice {
    static let granule: UInt64 = 16 << 10
    /// Not a multiple of anything.
    static let byteCount: UInt64 = (1 << 20) + 300

    let info: DeviceInfo
    let isFaulty: Bool
    let isMapped: Bool

    init(isReadOnly: Bool, isFaulty: Bool, isMapped: Bool) {
        info = DeviceInfo(byteCount: Self.byteCount, isReadOnly: isReadOnly)
        self.isFaulty = isFaulty
        self.isMapped = isMapped
    }

    static func isHole(_ offset: UInt64) -> Bool { offset / granule % 3 == 2 }
    static func byte(at offset: UInt64) -> UInt8 { isHole(offset) ? 0 : UInt8(truncatingIfNeeded: offset ^ (offset >> 8)) | 1 }

    /// Every seventh granule fails, in a way that follows from its place.
    private func touch(_ offset: UInt64, _ count: UInt64) throws(BlockError) {
        precondition(offset <= Self.byteCount && count <= Self.byteCount - offset, "a request outside of the device")
        guard isFaulty, count > 0 else { return }
        for index in (offset / Self.granule)...((offset + count - 1) / Self.granule) where index % 7 == 3 {
            let kinds = BlockError.Kind.allCases
            throw BlockError(
                kinds[Int(index) % kinds.count], "granule \(index) is broken \u{7}\u{202E}" + String(repeating: "x", count: 900))
        }
    }

    func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        try touch(offset, UInt64(buffer.byteCount))
        for i in 0..<buffer.byteCount {
            buffer.storeBytes(of: Self.byte(at: offset + UInt64(i)), toByteOffset: i, as: UInt8.self)
        }
    }

    func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        precondition(!info.isReadOnly && bytes.byteCount > 0)
        try touch(offset, UInt64(bytes.byteCount))
    }

    func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        precondition(!info.isReadOnly && !range.isEmpty)
        if options.contains(.fast), range.count > 1 << 16 { throw BlockError(.unsupported, "not fast") }
        try touch(range.start, range.count)
    }

    func discard(_ range: ByteRange) async throws(BlockError) {
        precondition(!info.isReadOnly && !range.isEmpty)
        try touch(range.start, range.count)
    }

    func flush() async throws(BlockError) {
        precondition(!info.isReadOnly)
    }

    func prefetch(_ range: ByteRange) async throws(BlockError) { try touch(range.start, range.count) }

    func status(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        try touch(range.start, min(range.count, 1))
        var position = range.start
        while position < range.end {
            let end = min(range.end, (position / Self.granule + 1) * Self.granule)
            guard extents.append(end - position, Self.isHole(position) ? [.hole, .zero] : .data) else { return }
            position = end
        }
    }

    func makeMapper() -> sending (any RangeMapper)? { isMapped ? HoleMapper() : nil }
}

/// Knows at once what lies in a single hole.
private final class HoleMapper: RangeMapper {
    func mapRead(_ range: ByteRange, into segments: inout SegmentList) -> Bool {
        guard FuzzDevice.isHole(range.start), (range.end - 1) / FuzzDevice.granule == range.start / FuzzDevice.granule else { return false }
        // Two segments, so that their sum is put to the test as well.
        segments.append(.zeroes(count: 1))
        segments.append(.zeroes(count: Int(range.count) - 1))
        return true
    }

    func mapWrite(_ range: ByteRange, into segments: inout SegmentList) -> Bool { false }
}
