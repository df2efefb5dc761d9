internal import Synchronization

/// A disk in memory. Pages exist from their first write on; discarding, or zeroing with `.mayUnmap`, gives whole ones back.
///
/// Pages are spread over shards with a lock each, so that requests seldom wait for each other.
public final class MemoryDevice: BlockDevice {
    public let info: DeviceInfo
    /// Most bytes of pages; a write that needs more fails with `.noSpace`.
    public let allocationLimit: UInt64
    private let shards: [Shard]
    private let pageCount = Atomic<UInt64>(0)

    static let pageByteCount = 64 << 10
    private static let shardCount: UInt64 = 64
    private typealias Page = [UInt8]

    private final class Shard: Sendable {
        let pages = Mutex<[UInt64: [UInt8]]>([:])
    }

    public init(byteCount: UInt64, allocationLimit: UInt64 = .max, isReadOnly: Bool = false) {
        info = DeviceInfo(
            byteCount: byteCount, blockSize: BlockSize(preferred: UInt32(Self.pageByteCount), maximum: 64 << 20), abilities: .allNative,
            isReadOnly: isReadOnly)
        self.allocationLimit = allocationLimit
        shards = (0..<Self.shardCount).map { _ in Shard() }
    }

    /// Memory taken by pages, in bytes.
    public var allocatedByteCount: UInt64 {
        pageCount.load(ordering: .relaxed) * UInt64(Self.pageByteCount)
    }

    public func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        var done = 0
        while done < buffer.byteCount {
            let place = Place(offset + UInt64(done), buffer.byteCount - done)
            var part = buffer._mutatingExtracting(done..<done + place.count)
            // The page is retained under the lock and copied outside of it: a writer meanwhile gets a page of its own.
            if let page = shard(place.page).pages.withLock({ $0[place.page] }) {
                part.copy(from: page.rawBytes.extracting(place.bytes))
            } else {
                part.fillWithZeroes()
            }
            done += place.count
        }
    }

    public func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        try checkWritable()
        var done = 0
        while done < bytes.byteCount {
            let place = Place(offset + UInt64(done), bytes.byteCount - done)
            let part = bytes.extracting(done..<done + place.count)
            try store(part, place)
            done += place.count
        }
    }

    public func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        try checkWritable()
        if options.contains(.mayUnmap) { return removePages(in: range, zeroingEdges: true) }
        let zeroes = [UInt8](repeating: 0, count: Self.pageByteCount)
        var rest = range
        while !rest.isEmpty {
            let place = Place(rest.start, Int(clamping: rest.count))
            try store(zeroes.rawBytes.extracting(first: place.count), place)
            rest = rest.dropFirst(UInt64(place.count))
            // Gigabytes take a while: others on this executor may want to do something, too.
            if place.page % 256 == 0 { await Task.yield() }
        }
    }

    public func discard(_ range: ByteRange) async throws(BlockError) {
        try checkWritable()
        removePages(in: range, zeroingEdges: false)
    }

    public func status(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        var rest = range
        // Bounded work: the answer may end early.
        for _ in 0..<65536 where !rest.isEmpty {
            let place = Place(rest.start, Int(clamping: rest.count))
            let isAllocated = shard(place.page).pages.withLock { $0[place.page] != nil }
            guard extents.append(UInt64(place.count), isAllocated ? .data : [.hole, .zero]) else { return }
            rest = rest.dropFirst(UInt64(place.count))
        }
    }
}

extension MemoryDevice {
    /// The part of a request that lies in one page.
    private struct Place {
        let page: UInt64
        let start: Int
        let count: Int
        var bytes: Range<Int> { start..<start + count }

        init(_ offset: UInt64, _ wanted: Int) {
            page = offset / UInt64(MemoryDevice.pageByteCount)
            start = Int(offset % UInt64(MemoryDevice.pageByteCount))
            count = min(wanted, MemoryDevice.pageByteCount - start)
        }
    }

    private func shard(_ page: UInt64) -> Shard {
        shards[Int(page % Self.shardCount)]
    }

    private func store(_ part: RawSpan, _ place: Place) throws(BlockError) {
        // SAFETY: spans cannot enter closures; the pointer stays inside this one, and `Place` keeps the bytes inside the page.
        let isStored = unsafe part.withUnsafeBytes { source in
            shard(place.page).pages.withLock { pages in
                if pages[place.page] == nil {
                    guard reservePage() else { return false }
                    pages[place.page] = Page(repeating: 0, count: Self.pageByteCount)
                }
                unsafe pages[place.page]?.withUnsafeMutableBytes { page in
                    unsafe UnsafeMutableRawBufferPointer(rebasing: page[place.bytes]).copyMemory(from: source)
                }
                return true
            }
        }
        guard isStored else { throw noSpace() }
    }

    private func reservePage() -> Bool {
        let count = pageCount.add(1, ordering: .relaxed).newValue
        if count <= allocationLimit / UInt64(Self.pageByteCount) { return true }
        pageCount.subtract(1, ordering: .relaxed)
        return false
    }

    @inline(never) private func noSpace() -> BlockError {
        BlockError(.noSpace, "the memory device may take \(allocationLimit) bytes and has taken them")
    }

    private func checkWritable() throws(BlockError) {
        if info.isReadOnly { throw BlockError(.readOnly, "the device is read-only") }
    }

    /// Gives back the pages that lie in `range` whole; of the others, zeroes the bytes inside if asked.
    private func removePages(in range: ByteRange, zeroingEdges: Bool) {
        let size = UInt64(Self.pageByteCount)
        // The last page may be short: it is whole when the range reaches the end of the device.
        let end = range.end == info.byteCount ? range.end + (size - 1) : range.end
        let firstWhole = (range.start + (size - 1)) / size
        let lastWhole = end / size
        if firstWhole < lastWhole { removePages(firstWhole..<lastWhole) }
        guard zeroingEdges else { return }
        var rest = range
        while !rest.isEmpty {
            let place = Place(rest.start, Int(clamping: rest.count))
            if place.page >= firstWhole, place.page < lastWhole {
                rest = rest.dropFirst(lastWhole * size - rest.start)
                continue
            }
            shard(place.page).pages.withLock { pages in
                pages[place.page]?.replaceSubrange(place.bytes, with: repeatElement(0, count: place.count))
            }
            rest = rest.dropFirst(UInt64(place.count))
        }
    }

    private func removePages(_ range: Range<UInt64>) {
        for (index, shard) in shards.enumerated() {
            let removed = shard.pages.withLock { pages -> UInt64 in
                let before = pages.count
                if UInt64(pages.count) < (range.upperBound - range.lowerBound) / Self.shardCount {
                    pages = pages.filter { !range.contains($0.key) }
                } else {
                    let distance = (UInt64(index) + Self.shardCount - range.lowerBound % Self.shardCount) % Self.shardCount
                    var page = range.lowerBound + distance
                    while page < range.upperBound {
                        pages[page] = nil
                        page += Self.shardCount
                    }
                }
                return UInt64(before - pages.count)
            }
            pageCount.subtract(removed, ordering: .relaxed)
        }
    }
}
