public import Block

/// A part of another device: bytes `offset ..< offset + byteCount` of it (S-EXP-07; qemu-nbd's `--offset`).
public final class RawWindow: ResizableDevice {
    public let info: DeviceInfo
    private let device: any BlockDevice
    private let offset: UInt64
    /// The device, if the window goes to its end and that may move.
    private let resizable: (any ResizableDevice)?

    /// - Parameter byteCount: length of the window; nil for all that follows `offset`.
    /// - Throws: `.outOfRange` when the window does not lie in `device`; `.invalid` when it cuts a block of a device whose minimum block
    ///   is larger than a byte.
    public init(_ device: any BlockDevice, offset: UInt64, byteCount: UInt64? = nil) throws(BlockError) {
        let whole = device.info.byteCount
        let count = byteCount ?? (offset <= whole ? whole - offset : 0)
        guard let range = ByteRange(start: offset, count: count, within: whole) else {
            throw .outOfRange(offset: offset, count: count, size: whole)
        }
        let minimum = device.info.blockSize.minimum
        guard range.isAligned(to: UInt64(minimum)) || (range.end == whole && offset % UInt64(minimum) == 0) else {
            throw BlockError(.invalid, "a window of \(range) cuts blocks of \(minimum) bytes")
        }
        var info = device.info
        info.byteCount = count
        self.info = info
        self.device = device
        self.offset = offset
        resizable = byteCount == nil ? device as? any ResizableDevice : nil
    }

    public var currentByteCount: UInt64 {
        guard let whole = resizable?.currentByteCount else { return info.byteCount }
        return whole - min(offset, whole)
    }

    /// - Throws: `.unsupported` for a window of a given length, and for a device that cannot be resized.
    public func resize(to byteCount: UInt64) async throws(BlockError) {
        guard let resizable else { throw BlockError(.unsupported, "a window of \(info.byteCount) bytes stays as it is") }
        guard byteCount <= UInt64(Int64.max) - offset else { throw BlockError(.tooLarge, "\(byteCount) bytes are more than 2^63 - 1") }
        try await resizable.resize(to: offset + byteCount)
    }

    public func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        let range = try inner(ByteRange(start: offset, count: UInt64(buffer.byteCount)))
        try await device.read(at: range.start, into: &buffer)
    }

    public func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        let range = try inner(ByteRange(start: offset, count: UInt64(bytes.byteCount)))
        try await device.write(at: range.start, from: bytes, options)
    }

    public func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        try await device.writeZeroes(inner(range), options)
    }

    public func discard(_ range: ByteRange) async throws(BlockError) {
        try await device.discard(inner(range))
    }

    public func flush() async throws(BlockError) {
        try await device.flush()
    }

    public func prefetch(_ range: ByteRange) async throws(BlockError) {
        try await device.prefetch(inner(range))
    }

    public func status(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        try await device.status(of: inner(range), into: &extents)
    }

    public func allocationDepth(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        try await device.allocationDepth(of: inner(range), into: &extents)
    }

    public func makeMapper() -> sending (any RangeMapper)? {
        guard let mapper = device.makeMapper() else { return nil }
        return WindowMapper(mapper, offset: offset, byteCount: limit)
    }

    public func settle() async { await device.settle() }

    public func close() async {
        await device.close()
    }

    /// Where requests end at the latest.
    private var limit: UInt64 { resizable == nil ? info.byteCount : UInt64(Int64.max) - offset }

    /// The same bytes in the device below. Checked again, although callers check: behind the window lie somebody else's bytes.
    private func inner(_ range: ByteRange?) throws(BlockError) -> ByteRange {
        guard let range, range.end <= limit, let inner = ByteRange(start: offset + range.start, count: range.count) else {
            throw .outOfRange(offset: range?.start ?? .max, count: range?.count ?? .max, size: info.byteCount)
        }
        return inner
    }
}

private final class WindowMapper: RangeMapper {
    private let mapper: any RangeMapper
    private let offset: UInt64
    private let byteCount: UInt64

    init(_ mapper: any RangeMapper, offset: UInt64, byteCount: UInt64) {
        self.mapper = mapper
        self.offset = offset
        self.byteCount = byteCount
    }

    func mapRead(_ range: ByteRange, into segments: inout SegmentList) -> Bool {
        guard let range = inner(range) else { return false }
        return mapper.mapRead(range, into: &segments)
    }

    func mapWrite(_ range: ByteRange, into segments: inout SegmentList) -> Bool {
        guard let range = inner(range) else { return false }
        return mapper.mapWrite(range, into: &segments)
    }

    func didWrite(_ range: ByteRange) {
        if let range = inner(range) { mapper.didWrite(range) }
    }

    var placesAreFixed: Bool { mapper.placesAreFixed }

    func released() { mapper.released() }

    private func inner(_ range: ByteRange) -> ByteRange? {
        guard range.end <= byteCount else { return nil }
        return ByteRange(start: offset + range.start, count: range.count)
    }
}
