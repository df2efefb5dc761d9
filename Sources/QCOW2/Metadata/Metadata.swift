internal import Block
internal import Synchronization

/// The tables of an open image: what is where, what is free, and in which order the image learns of changes.
///
/// Three locks, taken in this order: `commitLock`, `lock`, `state`.
///
/// - Looking up takes none of them (`L2Table`, `AtomicWords`).
/// - `lock` is held by whoever changes tables, also while he waits for a table to be read: changes are made one after the other.
/// - `state` keeps the values below whole; nobody waits with it.
/// - `commitLock` is held while changes are written (`Metadata+Commit`).
///
/// What is changed here is in memory. The order in which it comes into the image is that of `Metadata+Commit`, and makes every moment a
/// good one for a power cut: no table ever names what is not there, at worst clusters are taken that nobody names.
final class Metadata: Sendable {
    let geometry: ImageGeometry
    let file: any ResizableDevice
    /// Where guest clusters are, if not in `file`. Has no refcounts.
    let dataFile: (any ResizableDevice)?
    let isReadOnly: Bool
    /// The active L1 table, or that of the snapshot which is served.
    let l1: AtomicWords
    let l1TableOffset: UInt64
    let cache: L2Cache
    let quarantine = Quarantine()
    let lock = AsyncLock()
    let commitLock = AsyncLock()
    let state: Mutex<State>
    let limits: MetadataLimits
    /// See `fail`.
    private let failed = Atomic<Bool>(false)

    struct State {
        var header: ImageHeader
        var refcounts: Refcounts
        /// Clusters of the image's own tables: nothing else may be put there.
        var reserved = ClusterSet()
        var dirtyL1Entries: Set<Int> = []
        var dirtyTables: [L2Table] = []
        /// What no table in memory names any more, while the image may.
        var freed: [Quarantine.Freed] = []
        var freedClusterCount: UInt64 = 0
        /// From this cluster on nothing has ever been written.
        var untouchedFrom: UInt64 = 0
        /// Number of commits that have begun, and of the last that was begun and came to its end.
        var commitsBegun: UInt64 = 0
        var lastCommitDone: UInt64 = 0
        /// Found no room when it was written last. Nothing is gathered before it is through.
        var unfinishedCommit: Commit?
        var failure: BlockError?
    }

    init(
        header: ImageHeader, file: any ResizableDevice, dataFile: (any ResizableDevice)?, isReadOnly: Bool, l1Words: [UInt64],
        l1TableOffset: UInt64, refcounts: Refcounts, reserved: ClusterSet, limits: MetadataLimits
    ) {
        geometry = header.geometry
        self.file = file
        self.dataFile = dataFile
        self.isReadOnly = isReadOnly
        self.limits = limits
        l1 = AtomicWords(l1Words, count: l1Words.count)
        self.l1TableOffset = l1TableOffset
        cache = L2Cache(byteCountLimit: limits.l2ByteCount, geometry: header.geometry)
        state = Mutex(
            State(
                header: header, refcounts: refcounts, reserved: reserved,
                untouchedFrom: header.geometry.clusterCount(of: file.currentByteCount)))
    }

    // MARK: Failure

    /// A write of metadata or a flush has failed, or what is in the image cannot be: from now on nothing is written any more. What the
    /// image holds then is what a power cut would have left.
    func fail(_ error: BlockError) {
        state.withLock { state in
            if state.failure == nil { state.failure = error }
        }
        failed.store(true, ordering: .sequentiallyConsistent)
    }

    @inline(__always) var hasFailed: Bool { failed.load(ordering: .relaxed) }

    func checkHealthy() throws(BlockError) {
        guard hasFailed else { return }
        let failure = state.withLock { $0.failure }
        throw BlockError(.inputOutput, "the image is not written any more since an earlier error: \(failure?.detail ?? "unknown")")
    }

    /// Notes in the image that it is damaged, so that nobody writes to it before a repair.
    func failAsCorrupt(_ detail: String) async -> BlockError {
        let error = BlockError(.inputOutput, "the image is damaged: \(detail)")
        guard !isReadOnly, !hasFailed else { return error }
        fail(error)
        let features = state.withLock { state -> IncompatibleFeatures? in
            guard state.header.version >= 3 else { return nil }
            state.header.incompatibleFeatures.insert(.corrupt)
            return state.header.incompatibleFeatures
        }
        if let features {
            // Without success nothing is lost: this image is not written any more in any case.
            try? await writeIncompatibleFeatures(features)
        }
        return error
    }

    // MARK: Tables

    /// The L2 table that the L1 entry names, from memory or from the image; nil when there is none.
    func table(_ l1Index: Int) async throws(BlockError) -> L2Table? {
        while true {
            if let table = cache.table(l1Index) { return table }
            let evictionCount = cache.evictionCount
            guard let table = try await readTable(l1Index) else { return nil }
            if let table = cache.insert(table, readAt: evictionCount) { return table }
        }
    }

    private func readTable(_ l1Index: Int) async throws(BlockError) -> L2Table? {
        let offset: UInt64?
        do throws(FormatError) {
            offset = try L1Entry(rawValue: l1[l1Index]).table(in: geometry)
        } catch {
            throw BlockError(error)
        }
        guard let offset else { return nil }
        guard isInFile(offset, UInt64(geometry.clusterByteCount)) else {
            throw BlockError(.inputOutput, "the image is damaged: an L2 table at \(offset.hex) lies beyond the end of the file")
        }
        let words = try await file.bytes(at: offset, count: geometry.clusterByteCount).bigEndianWords
        let isSuspect = !isReadOnly && hasSuspects(words)
        return L2Table(l1Index: l1Index, hostOffset: offset, words: words, geometry: geometry, isNew: false, isSuspect: isSuspect)
    }

    func isInFile(_ offset: UInt64, _ byteCount: UInt64) -> Bool {
        ByteRange(start: offset, count: byteCount, within: file.currentByteCount) != nil
    }

    /// Whether an entry names a cluster that is part of a table: writing there would destroy it.
    private func hasSuspects(_ words: [UInt64]) -> Bool {
        guard dataFile == nil else { return false }
        let step = geometry.l2EntryByteCount / 8
        return state.withLock { state in
            for index in stride(from: 0, to: words.count, by: step) {
                let entry = L2Entry(rawDescriptor: words[index])
                guard !entry.isCompressed, entry.hostOffset != 0 else { continue }
                if state.reserved.contains(entry.hostOffset >> UInt64(geometry.clusterBits)) { return true }
            }
            return false
        }
    }

    /// Whether a part of the bytes belongs to a table of the image.
    func isReserved(_ offset: UInt64, _ byteCount: UInt64) -> Bool {
        let bits = UInt64(geometry.clusterBits)
        guard byteCount > 0, let range = ByteRange(start: offset, count: byteCount - 1) else { return false }
        return state.withLock { $0.reserved.overlaps(range.start >> bits..<(range.end >> bits) + 1) }
    }
}

/// How much memory the tables of an open image may take.
public struct MetadataLimits: Equatable, Sendable {
    /// Bytes of L2 tables: 1 MiB for 8 GiB of disk with clusters of 64 KiB.
    public var l2ByteCount: Int
    /// Bytes of refcount blocks; only for writing.
    public var refcountByteCount: Int

    public init(l2ByteCount: Int = 32 << 20, refcountByteCount: Int = 8 << 20) {
        self.l2ByteCount = l2ByteCount
        self.refcountByteCount = refcountByteCount
    }
}
