internal import Block

/// The refcount table and those of its blocks that are in memory, with what of them the image does not have yet.
///
/// A value: no I/O happens here. Where a block has to be loaded or made first, the answer says so, and the caller asks again.
struct Refcounts: Sendable {
    let geometry: ImageGeometry
    /// Where the table is in the image, and how many clusters it takes.
    private(set) var tableOffset: UInt64
    private(set) var tableClusterCount: UInt64
    /// Offsets of blocks; 0: none. Checked when the table was read.
    private(set) var table: [UInt64]
    /// Entries of the table that changed since they were last written.
    private(set) var dirtyTableEntries: Set<Int> = []
    private(set) var blocks: [Int: Block] = [:]
    /// Of `blocks`, those that changed since they were last gathered.
    private(set) var dirtyBlocks: Set<Int> = []
    /// Where the search for free clusters begins: there are none before it.
    private(set) var firstPossiblyFree: UInt64 = 0
    private var useCount: UInt64 = 0

    struct Block: Sendable {
        var offset: UInt64
        var bytes: [UInt8]
        /// Bytes that changed since they were last gathered.
        var dirty: Range<Int>?
        /// The table in the image does not name it yet.
        var isNew = false
        /// Its bytes are on their way to the image.
        var isBeingWritten = false
        var lastUse: UInt64 = 0
    }

    /// What a search or a change came to.
    enum Answer<Value: Sendable>: Sendable {
        case done(Value)
        /// The block with this number, at this offset, must be loaded first.
        case load(Int, offset: UInt64)
        /// There is no such block: all its refcounts are 0.
        case create(Int)
        /// The table is too short.
        case grow
    }

    init(geometry: ImageGeometry, tableOffset: UInt64, tableClusterCount: UInt64, table: [UInt64]) {
        self.geometry = geometry
        self.tableOffset = tableOffset
        self.tableClusterCount = tableClusterCount
        self.table = table
    }

    private var width: RefcountWidth { geometry.refcountWidth }
    private var entryCount: Int { geometry.refcountBlockEntryCount }
    var blockByteCount: Int { geometry.clusterByteCount }
    var loadedByteCount: Int { blocks.count * geometry.clusterByteCount }
    var isDirty: Bool { !dirtyTableEntries.isEmpty || !dirtyBlocks.isEmpty }
    var dirtyByteCount: Int { dirtyBlocks.count * geometry.clusterByteCount }

    func blockIndex(of cluster: UInt64) -> Int { Int(clamping: cluster >> UInt64(geometry.refcountBlockBits)) }
    private func entryIndex(of cluster: UInt64) -> Int { Int(cluster & UInt64(entryCount - 1)) }
    func firstCluster(ofBlock index: Int) -> UInt64 { UInt64(index) << UInt64(geometry.refcountBlockBits) }
}

// MARK: - Asking

extension Refcounts {
    mutating func refcount(of cluster: UInt64) -> Answer<UInt64> {
        let index = blockIndex(of: cluster)
        guard index < table.count, table[index] != 0 else { return .done(0) }
        guard let block = use(index) else { return .load(index, offset: table[index]) }
        return .done(width.refcount(at: entryIndex(of: cluster), in: block.bytes.rawBytes))
    }

    /// The first run of free clusters from `firstPossiblyFree` on, at most `limit` long. One block is looked at in one call: `.done(nil)` says
    /// "go on", because that one had none.
    ///
    /// - Parameter reserved: clusters that are not free whatever their refcounts say.
    mutating func findFree(limit: UInt64, reserved: ClusterSet) -> Answer<Range<UInt64>?> {
        let index = blockIndex(of: firstPossiblyFree)
        guard index < table.count else { return .grow }
        guard table[index] != 0 else { return .create(index) }
        guard let block = use(index) else { return .load(index, offset: table[index]) }
        let base = firstCluster(ofBlock: index)
        let bytes = block.bytes.rawBytes
        var entry = entryIndex(of: firstPossiblyFree)
        func isFree(_ entry: Int) -> Bool {
            width.refcount(at: entry, in: bytes) == 0 && !reserved.contains(base + UInt64(entry))
        }
        while entry < entryCount, !isFree(entry) { entry += 1 }
        firstPossiblyFree = base + UInt64(entry)
        guard entry < entryCount else { return .done(nil) }
        var end = entry + 1
        while end < entryCount, UInt64(end - entry) < limit, isFree(end) { end += 1 }
        return .done(base + UInt64(entry)..<base + UInt64(end))
    }

    private mutating func use(_ index: Int) -> Block? {
        useCount += 1
        blocks[index]?.lastUse = useCount
        return blocks[index]
    }
}

// MARK: - Changing

extension Refcounts {
    /// Sets the refcount of clusters of one block, which is loaded.
    mutating func set(_ refcount: UInt64, for clusters: Range<UInt64>) {
        guard let first = clusters.first else { return }
        let index = blockIndex(of: first)
        precondition(blocks[index] != nil && blockIndex(of: clusters.upperBound - 1) == index)
        let low = entryIndex(of: first)
        let high = low + clusters.count
        let width = width
        blocks[index]?.bytes.withMutableRawBytes { bytes in
            for entry in low..<high { width.setRefcount(refcount, at: entry, in: &bytes) }
        }
        let bytes = (low << width.order) / 8..<((high << width.order) + 7) / 8
        let old = blocks[index]?.dirty ?? bytes
        blocks[index]?.dirty = min(old.lowerBound, bytes.lowerBound)..<max(old.upperBound, bytes.upperBound)
        dirtyBlocks.insert(index)
        if refcount == 0 { firstPossiblyFree = min(firstPossiblyFree, first) }
    }

    /// Marks clusters that `findFree` has found as used once.
    mutating func take(_ clusters: Range<UInt64>) {
        set(1, for: clusters)
        if firstPossiblyFree == clusters.lowerBound { firstPossiblyFree = clusters.upperBound }
    }

    /// Takes one reference from each of the clusters, which lie in one block. Answers which of them are free now; nil: one of them had none,
    /// and nothing has changed.
    mutating func drop(_ clusters: Range<UInt64>) -> Answer<[UInt64]?> {
        guard let first = clusters.first else { return .done([]) }
        let index = blockIndex(of: first)
        guard index < table.count, table[index] != 0 else { return .done(nil) }
        guard let block = use(index) else { return .load(index, offset: table[index]) }
        let low = entryIndex(of: first)
        let counts = (0..<clusters.count).map { width.refcount(at: low + $0, in: block.bytes.rawBytes) }
        guard !counts.contains(0) else { return .done(nil) }
        var free: [UInt64] = []
        for (position, count) in counts.enumerated() {
            let cluster = first + UInt64(position)
            set(count - 1, for: cluster..<cluster + 1)
            if count == 1 { free.append(cluster) }
        }
        return .done(free)
    }

    mutating func insert(_ bytes: [UInt8], asBlock index: Int) {
        guard blocks[index] == nil, table[index] != 0 else { return }
        useCount += 1
        blocks[index] = Block(offset: table[index], bytes: bytes, lastUse: useCount)
    }

    /// Adds an empty block that lies at `cluster`. Its own refcount is the caller's business: it need not be one of the block's own.
    mutating func createBlock(_ index: Int, at cluster: UInt64) {
        precondition(table[index] == 0 && blocks[index] == nil)
        table[index] = cluster << UInt64(geometry.clusterBits)
        dirtyTableEntries.insert(index)
        useCount += 1
        blocks[index] = Block(
            offset: table[index], bytes: [UInt8](repeating: 0, count: blockByteCount), dirty: 0..<blockByteCount, isNew: true,
            lastUse: useCount)
        dirtyBlocks.insert(index)
    }

    /// Makes the table longer, in memory.
    mutating func lengthenTable(to entryCount: Int) {
        table += [UInt64](repeating: 0, count: max(0, entryCount - table.count))
    }

    /// The image has the whole table at `offset` from now on.
    mutating func moveTable(to offset: UInt64, clusterCount: UInt64) {
        tableOffset = offset
        tableClusterCount = clusterCount
        dirtyTableEntries = []
    }

    /// Blocks that the image may not have as they are, whole. They stay dirty: an older version may still be on its way.
    mutating func unwrittenBlocks() -> [Piece] {
        blocks.keys.sorted().compactMap { index in
            guard let block = blocks[index], block.dirty != nil || block.isBeingWritten else { return nil }
            blocks[index]?.dirty = 0..<block.bytes.count
            dirtyBlocks.insert(index)
            return Piece(offset: block.offset, bytes: block.bytes)
        }
    }

    /// Begins the next search behind a block in which nothing can be had.
    mutating func skipBlock(_ index: Int) { firstPossiblyFree = firstCluster(ofBlock: index + 1) }
}

// MARK: - Writing back

extension Refcounts {
    /// A piece of the image that has to be written.
    struct Piece: Sendable {
        var offset: UInt64
        var bytes: [UInt8]
    }

    /// What changed, in the order in which the image must learn it: new blocks, table entries that name them, changes of old blocks.
    struct Changes: Sendable {
        var newBlocks: [Piece] = []
        var tableEntries: [Piece] = []
        var blocks: [Piece] = []
        var indices: [Int] = []
        var isEmpty: Bool { newBlocks.isEmpty && tableEntries.isEmpty && blocks.isEmpty }
    }

    /// Copies what changed; it counts as written from now on, and stays in memory until `finish(_:)`.
    mutating func gather() -> Changes {
        var changes = Changes()
        for index in dirtyBlocks.sorted() {
            guard let block = blocks[index], let dirty = block.dirty else { continue }
            if block.isNew {
                changes.newBlocks.append(Piece(offset: block.offset, bytes: block.bytes))
            } else {
                // Whole sectors, where the medium takes nothing else.
                let range = dirty.lowerBound & ~511..<min((dirty.upperBound + 511) & ~511, block.bytes.count)
                changes.blocks.append(Piece(offset: block.offset + UInt64(range.lowerBound), bytes: Array(block.bytes[range])))
            }
            blocks[index]?.dirty = nil
            blocks[index]?.isNew = false
            blocks[index]?.isBeingWritten = true
            changes.indices.append(index)
        }
        dirtyBlocks = []
        for index in dirtyTableEntries.sorted() {
            changes.tableEntries.append(
                Piece(offset: tableOffset + UInt64(index) * 8, bytes: [UInt8](bigEndianWords: [table[index]], count: 1)))
        }
        dirtyTableEntries = []
        return changes
    }

    mutating func finish(_ changes: Changes) {
        for index in changes.indices { blocks[index]?.isBeingWritten = false }
    }

    /// Forgets the blocks that were used least lately, if the image has them, until at most `byteCount` bytes are left.
    mutating func shrink(to byteCount: Int) {
        guard loadedByteCount > byteCount else { return }
        let clean = blocks.filter { $0.value.dirty == nil && !$0.value.isBeingWritten }.sorted { $0.value.lastUse < $1.value.lastUse }
        // Half of them: the next ones need not ask again.
        for (index, _) in clean {
            guard loadedByteCount > byteCount / 2 else { return }
            blocks[index] = nil
        }
    }
}
