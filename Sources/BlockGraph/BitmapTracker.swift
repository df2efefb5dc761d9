public import Block
internal import Synchronization

/// A filter that records writes in dirty bitmaps, so that any device has them.
///
/// Every write, write of zeroes and discard is recorded when the device is done with it and before its caller is told, also when it failed:
/// then some of it may have been written (S-BLK-23). Mapped writes are recorded by the mapper, on its loop, without a lock.
public final class BitmapTracker: BlockDevice, BitmapOwner {
    public let info: DeviceInfo
    /// What the filter stands on.
    public let device: any BlockDevice
    private let list = BitmapList()

    public init(_ device: any BlockDevice) {
        self.device = device
        info = device.info
    }

    // MARK: Bitmaps

    public var bitmaps: [DirtyBitmap] { list.all }

    /// Makes a bitmap that records from now on.
    ///
    /// - Throws: `.invalid` for a name that is taken, or a name or granularity out of range.
    @discardableResult
    public func addBitmap(
        _ name: String, granularity: UInt64 = DirtyBitmap.defaultGranularity, isEnabled: Bool = true
    ) throws(BitmapError) -> DirtyBitmap {
        let bitmap = try DirtyBitmap(name, byteCount: info.byteCount, granularity: granularity, isEnabled: isEnabled)
        try list.add(bitmap)
        return bitmap
    }

    /// - Throws: `.notFound`; `.busy` while somebody uses it.
    public func removeBitmap(_ name: String) throws(BitmapError) { try list.remove(name) }

    // MARK: Requests that change something

    public func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        defer { record(ByteRange(start: offset, count: UInt64(bytes.byteCount))) }
        try await device.write(at: offset, from: bytes, options)
    }

    public func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        do throws(BlockError) {
            try await device.writeZeroes(range, options)
        } catch {
            // A refusal to do it slowly has changed nothing (P-CMD-ZERO-2).
            if !(options.contains(.fast) && error.kind == .unsupported) { record(range) }
            throw error
        }
        record(range)
    }

    public func discard(_ range: ByteRange) async throws(BlockError) {
        defer { record(range) }
        try await device.discard(range)
    }

    private func record(_ range: ByteRange?) {
        guard let range else { return }
        for bitmap in list.all { bitmap.record(range) }
    }

    // MARK: Others

    public func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        try await device.read(at: offset, into: &buffer)
    }

    public func flush() async throws(BlockError) { try await device.flush() }

    public func prefetch(_ range: ByteRange) async throws(BlockError) { try await device.prefetch(range) }

    public func status(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        try await device.status(of: range, into: &extents)
    }

    public func allocationDepth(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        try await device.allocationDepth(of: range, into: &extents)
    }

    public func makeMapper() -> sending (any RangeMapper)? {
        guard let mapper = device.makeMapper() else { return nil }
        return TrackingMapper(mapper, list)
    }

    public func settle() async { await device.settle() }

    public func close() async { await device.close() }
}

/// The bitmaps of a node. Mappers keep a copy, and look at `version` before they use it.
private final class BitmapList: Sendable {
    private let state = Mutex<[DirtyBitmap]>([])
    let version = Atomic<Int>(0)

    var all: [DirtyBitmap] { state.withLock { $0 } }

    func add(_ bitmap: DirtyBitmap) throws(BitmapError) {
        try state.withLock { bitmaps throws(BitmapError) in
            guard !bitmaps.contains(where: { $0.name == bitmap.name }) else {
                throw BitmapError(.invalid, bitmap.name, "there is one of this name already")
            }
            bitmaps.append(bitmap)
            version.add(1, ordering: .releasing)
        }
    }

    func remove(_ name: String) throws(BitmapError) {
        try state.withLock { bitmaps throws(BitmapError) in
            guard let index = bitmaps.firstIndex(where: { $0.name == name }) else {
                throw BitmapError(.notFound, name, "there is none of this name")
            }
            if let user = bitmaps[index].user { throw BitmapError(.busy, name, "it is in use by \(user)") }
            bitmaps.remove(at: index)
            version.add(1, ordering: .releasing)
        }
    }
}

private final class TrackingMapper: RangeMapper {
    private let mapper: any RangeMapper
    private let list: BitmapList
    private var bitmaps: [DirtyBitmap] = []
    private var version = -1

    init(_ mapper: any RangeMapper, _ list: BitmapList) {
        self.mapper = mapper
        self.list = list
    }

    func mapRead(_ range: ByteRange, into segments: inout SegmentList) -> Bool { mapper.mapRead(range, into: &segments) }

    func mapWrite(_ range: ByteRange, into segments: inout SegmentList) -> Bool { mapper.mapWrite(range, into: &segments) }

    func didWrite(_ range: ByteRange) {
        let current = list.version.load(ordering: .acquiring)
        if current != version {
            // The version first: a change after that is seen the next time.
            version = current
            bitmaps = list.all
        }
        for bitmap in bitmaps { bitmap.record(range) }
        mapper.didWrite(range)
    }

    var placesAreFixed: Bool { mapper.placesAreFixed }

    func released() { mapper.released() }
}
