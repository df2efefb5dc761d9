public import Block
internal import Synchronization

/// A qcow2 image as a device: a disk whose clusters lie in a file, in files below it, or nowhere.
///
/// It sits on any `ResizableDevice`. Backing and data files are the caller's to open, by the names in the header: what may be opened, and
/// whether a chain bites its own tail, only the caller can know. All of them belong to the image afterwards, which closes them.
///
///     let header = try await ImageHeader.read(from: file)
///     let image = try await QCOW2Image.open(header, on: file, backing: …)
///
/// - Reads and overwrites of what has its cluster for itself run in parallel and wait for nobody.
/// - A write that needs a cluster waits for other such writes to the same cluster only, and shortly for the tables (`Metadata`).
/// - The image is in order at every moment, whenever the power fails (`Metadata+Commit`).
/// - What is damaged fails the requests that meet it. Writing near damage marks the image and ends all writing.
///
/// Spec: docs/interop/qcow2.txt of QEMU. REFERENCE: S-BLK rows, S-BST-07, S-BST-08.
public final class QCOW2Image: BlockDevice {
    public let info: DeviceInfo
    /// As it was when the image was opened.
    public let header: ImageHeader
    let metadata: Metadata
    let geometry: ImageGeometry
    /// What lies below where the image has nothing. Any alignment.
    let backing: (any BlockDevice)?
    let backingByteCount: UInt64
    /// Where data clusters are: the file, or the external data file.
    let data: any ResizableDevice
    let hasDataFile: Bool
    let finder: RunFinder
    let options: Options
    /// Held by those who give clusters a place or take it away, for the clusters concerned.
    let allocationLock = RangeLock()
    let expanded: ClusterCache
    /// See `QCOW2Image+Status`: 0 not known yet, 1 no, 2 yes.
    let preallocation = Atomic<Int>(0)
    private let isClosed = Atomic<Bool>(false)
    let bitmapStore: BitmapStore?

    public struct Options: Sendable {
        /// Nothing is written, not even what an opening would.
        public var isReadOnly: Bool
        /// Discards free clusters, and zeroes may (`WriteOptions.mayUnmap`); otherwise they keep their space.
        public var honorsDiscard: Bool
        /// Serve this internal snapshot instead of the current state. Only with `isReadOnly`.
        public var snapshot: SnapshotSelector?
        /// Every write is durable when it returns, as with `WriteOptions.durable`.
        public var writesThrough = false
        public var limits: MetadataLimits
        /// Is told what goes wrong where nobody can be answered: when bitmaps are stored, and at the end. For the operator.
        public var report: (@Sendable (String) -> Void)?

        public init(
            isReadOnly: Bool = false, honorsDiscard: Bool = true, snapshot: SnapshotSelector? = nil,
            limits: MetadataLimits = MetadataLimits()
        ) {
            self.isReadOnly = isReadOnly
            self.honorsDiscard = honorsDiscard
            self.snapshot = snapshot
            self.limits = limits
        }
    }

    init(
        _ opened: OpenedTables, metadata: Metadata, backing: (any BlockDevice)?, data: any ResizableDevice, bitmapStore: BitmapStore?,
        options: Options
    ) {
        header = opened.header
        geometry = opened.header.geometry
        self.metadata = metadata
        self.backing = backing.map { $0.info.blockSize.minimum == 1 ? $0 : Emulation($0) }
        backingByteCount = self.backing?.info.byteCount ?? 0
        self.data = data
        hasDataFile = opened.header.hasDataFile
        self.bitmapStore = bitmapStore
        self.options = options
        finder = RunFinder(geometry: opened.header.geometry, hasDataFile: opened.header.hasDataFile)
        expanded = ClusterCache(byteCountLimit: 2 << 20, clusterByteCount: opened.header.geometry.clusterByteCount)
        let preferred = UInt32(min(max(geometry.subclusterByteCount, 4096), 65536))
        let maxima: [UInt32] = [data.info.blockSize.maximum, self.backing?.info.blockSize.maximum ?? .max, 32 << 20]
        info = DeviceInfo(
            byteCount: opened.virtualByteCount,
            blockSize: BlockSize(minimum: 1, preferred: preferred, maximum: max(maxima.min() ?? preferred, preferred)),
            abilities: .allNative, isReadOnly: options.isReadOnly, isRotational: data.info.isRotational)
    }

    public func settle() async {
        guard !options.isReadOnly, !metadata.hasFailed else { return }
        await bitmapStore?.settle()
        await metadata.file.settle()
        await metadata.dataFile?.settle()
    }

    public func close() async {
        guard !isClosed.exchange(true, ordering: .sequentiallyConsistent) else { return }
        if !options.isReadOnly, !metadata.hasFailed {
            do throws(BlockError) {
                try await bitmapStore?.finish()
            } catch {
                options.report?("bitmaps could not be stored, and are marked as inconsistent: \(error.detail)")
            }
            do throws(BlockError) {
                try await metadata.finish()
            } catch {
                // The image is what a power cut would have left: in order, and marked where it says so.
                metadata.fail(error)
                options.report?("what was not flushed may be lost: \(error.detail)")
            }
        }
        await metadata.file.close()
        await metadata.dataFile?.close()
        await backing?.close()
    }

    func checkWritable() throws(BlockError) {
        if options.isReadOnly { throw BlockError(.readOnly, "the image was opened read-only") }
        try metadata.checkHealthy()
    }

    /// Every request that changes the disk begins with this and ends with `endWrite`.
    func beginWrite() async throws(BlockError) {
        try checkWritable()
        try await bitmapStore?.beginWrite()
    }

    /// Before the request is answered, whatever came of it (S-BLK-23).
    ///
    /// - Parameter range: what may have changed.
    @inline(__always) func endWrite(_ range: ByteRange?) {
        guard let bitmapStore else { return }
        if let range { for bitmap in bitmapStore.bitmaps { bitmap.record(range) } }
        bitmapStore.endWrite()
    }

    /// The clusters around a range of guest bytes.
    func clusters(around range: ByteRange) -> ByteRange {
        let start = range.start & ~geometry.clusterMask
        let (sum, overflow) = range.end.addingReportingOverflow(geometry.clusterMask)
        let end = overflow ? UInt64.max & ~geometry.clusterMask : sum & ~geometry.clusterMask
        return ByteRange(start: start, count: end - start) ?? range
    }

    /// The file below has bytes for a part of the range.
    func hasBacking(_ range: ByteRange) -> Bool { backing != nil && range.start < backingByteCount }
}

/// Which internal snapshot is meant. QEMU: `-l snapshot.id=…,snapshot.name=…`, or a text that is one of the two.
public struct SnapshotSelector: Equatable, Sendable {
    public var id: String?
    public var name: String?
    /// Either.
    public var idOrName: String?

    public init(id: String? = nil, name: String? = nil, idOrName: String? = nil) {
        self.id = id
        self.name = name
        self.idOrName = idOrName
    }

    func find(in snapshots: [SnapshotEntry]) -> SnapshotEntry? {
        func text(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }
        if let idOrName {
            return snapshots.first { text($0.id) == idOrName } ?? snapshots.first { text($0.name) == idOrName }
        }
        return snapshots.first { snapshot in (id.map { $0 == text(snapshot.id) } ?? true) && (name.map { $0 == text(snapshot.name) } ?? true) }
    }
}

extension SnapshotSelector: CustomStringConvertible {
    public var description: String {
        [id.map { "id '\($0)'" }, name.map { "name '\($0)'" }, idOrName.map { "'\($0)'" }].compactMap(\.self).joined(separator: " and ")
    }
}
