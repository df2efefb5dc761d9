import Block

/// Gives and takes clusters of an image that nobody else has open, for the tools that change it.
///
/// Whoever uses it keeps the order that survives a power cut: allocate, `save`, write what lies in the new clusters, flush, refer to it,
/// flush; and free only what nothing in the file refers to any more. At worst a cluster is lost then, never data.
final class ImageEditor {
    let image: ImageFile
    /// Offsets of the refcount blocks; 0 where there is none.
    private var table: [UInt64] = []
    private var blocks: [UInt64: [UInt8]] = [:]
    private var changed: Set<UInt64> = []
    /// Everything below is in use, as far as is known.
    private var cursor: UInt64 = 0

    private static let cacheByteCountLimit = 32 << 20

    private var geometry: ImageGeometry { image.geometry }
    private var shift: UInt64 { UInt64(geometry.refcountBlockBits) }
    private var clusterBits: UInt64 { UInt64(geometry.clusterBits) }

    /// Prepares an image to be changed: repairs one that was not shut down well, and switches off what we do not know and may not keep.
    ///
    /// - Throws: `.refused` for one that is marked as corrupt, or that the repair did not mend.
    init(_ image: ImageFile) async throws(ImageError) {
        self.image = image
        try decoding { () throws(FormatError) in try image.header.requireReadable() }
        guard !image.header.incompatibleFeatures.contains(.corrupt) else {
            throw .refused("the image is marked as corrupt: repair it first (nbd image check -r all)")
        }
        if image.header.incompatibleFeatures.contains(.dirty) {
            let report = try await image.check(repair: .all)
            guard report.corruptionCount == 0, report.errorCount == 0 else {
                throw .refused("the image was not shut down well and cannot be repaired")
            }
        }
        // Bitmaps that the last writer did not keep up say nothing any more.
        if !image.header.autoclearFeatures.contains(.bitmaps) {
            image.header.extensions.removeAll { if case .bitmaps = $0 { true } else { false } }
        }
        image.header.autoclearFeatures.formIntersection(.known)
        guard image.header.refcountTableClusterCount > 0,
            image.header.refcountTableByteCount <= image.byteCount,
            image.header.refcountTableOffset <= image.byteCount - image.header.refcountTableByteCount
        else { throw .format(.corrupt("the refcount table lies outside of the file")) }
        table = try await image.readEntries(
            at: image.header.refcountTableOffset, count: Int(image.header.refcountTableByteCount / 8))
    }

    // MARK: Refcounts

    private func blockOffset(_ index: UInt64) throws(ImageError) -> UInt64? {
        guard index < UInt64(table.count) else { return nil }
        let entry = RefcountTableEntry(rawValue: table[Int(index)])
        let offset = try decoding { () throws(FormatError) in try entry.block(in: geometry) }
        guard let offset else { return nil }
        guard offset < image.byteCount else { throw .format(.corrupt("refcount block \(index) lies outside of the file")) }
        return offset
    }

    private func load(_ index: UInt64) async throws(ImageError) -> Bool {
        guard blocks[index] == nil else { return true }
        guard let offset = try blockOffset(index) else { return false }
        if (blocks.count + 1) * geometry.clusterByteCount > max(Self.cacheByteCountLimit, 2 * geometry.clusterByteCount) {
            try await save()
            blocks = [:]
        }
        blocks[index] = try await image.read(at: offset, count: geometry.clusterByteCount)
        return true
    }

    func refcount(of cluster: UInt64) async throws(ImageError) -> UInt64 {
        guard try await load(cluster >> shift), let block = blocks[cluster >> shift] else { return 0 }
        return geometry.refcountWidth.refcount(at: Int(cluster & (1 << shift - 1)), in: block.rawBytes)
    }

    private func set(_ refcount: UInt64, of cluster: UInt64) async throws(ImageError) {
        guard try await load(cluster >> shift) else { throw .format(.corrupt("cluster \(cluster) has no refcount")) }
        guard refcount <= geometry.refcountWidth.maximum else {
            throw .refused(
                "cluster \(cluster) would have \(refcount) references, more than \(geometry.refcountWidth.bitCount) bits can count")
        }
        store(refcount, at: Int(cluster & (1 << shift - 1)), in: cluster >> shift)
    }

    private func store(_ refcount: UInt64, at entry: Int, in index: UInt64) {
        guard var block = blocks.removeValue(forKey: index) else { return }
        var span = block.mutableSpan
        // SAFETY: any bit pattern is a byte.
        var bytes = unsafe span.mutableBytes
        geometry.refcountWidth.setRefcount(refcount, at: entry, in: &bytes)
        blocks[index] = block
        changed.insert(index)
    }

    /// One reference more to each of `count` clusters from `offset` on.
    func retain(_ offset: UInt64, clusterCount: UInt64 = 1) async throws(ImageError) {
        for cluster in offset >> clusterBits..<offset >> clusterBits + clusterCount {
            let old = try await refcount(of: cluster)
            guard old > 0 else { throw .format(.corrupt("cluster \(cluster) is in use and counts as free")) }
            guard old < .max else { throw .format(.corrupt("cluster \(cluster) has too many references")) }
            try await set(old + 1, of: cluster)
        }
    }

    /// One reference less to each of `count` clusters from `offset` on.
    func release(_ offset: UInt64, clusterCount: UInt64 = 1) async throws(ImageError) {
        for cluster in offset >> clusterBits..<offset >> clusterBits + clusterCount {
            let old = try await refcount(of: cluster)
            guard old > 0 else { throw .format(.corrupt("cluster \(cluster) is in use and counts as free")) }
            try await set(old - 1, of: cluster)
            if old == 1 { cursor = min(cursor, cluster) }
        }
    }

    /// Writes changed refcounts, durably.
    func save() async throws(ImageError) {
        for index in changed.sorted() {
            guard let block = blocks[index], let offset = try blockOffset(index) else { continue }
            try await image.write(block, at: offset)
        }
        changed = []
        try await image.flush()
    }

    // MARK: Space

    /// Takes `count` clusters in a row, each with one reference: the offset of the first.
    func allocate(clusterCount count: UInt64) async throws(ImageError) -> UInt64 {
        while true {
            let first = try await findFree(count)
            if try await makeBlocks(from: first, count) { continue }
            for cluster in first..<first + count { try await set(1, of: cluster) }
            if count == 1 { cursor = first + 1 }
            return first << clusterBits
        }
    }

    private func findFree(_ count: UInt64) async throws(ImageError) -> UInt64 {
        let end = geometry.clusterCount(of: image.byteCount)
        var first = cursor
        var cluster = cursor
        while cluster - first < count {
            // Behind the end of the file everything is free, whatever a block says: but a lost count there is kept out of the way.
            if cluster >= end, try blockOffset(cluster >> shift) == nil { break }
            if try await refcount(of: cluster) > 0 { first = cluster + 1 }
            cluster += 1
        }
        guard first <= FormatLimits.hostOffsetMask >> clusterBits - count else { throw .refused("the file would become too large") }
        return first
    }

    /// Makes the blocks that a run of `count` clusters from `first` on lacks: they take the front of it, so that the rest stays in one
    /// piece. False when all were there; else whoever wants the run looks for it again.
    private func makeBlocks(from first: UInt64, _ count: UInt64) async throws(ImageError) -> Bool {
        var missing: [UInt64] = []
        while true {
            var found: [UInt64] = []
            for index in first >> shift...(first + UInt64(missing.count) + count - 1) >> shift where try blockOffset(index) == nil {
                found.append(index)
            }
            if found.count == missing.count { break }
            missing = found
        }
        guard let last = missing.last else { return false }
        guard last < UInt64(table.count) else {
            try await growTable(for: last)
            return true
        }
        let new = Set(missing)
        let places = first..<first + UInt64(missing.count)
        for cluster in places where !new.contains(cluster >> shift) { try await set(1, of: cluster) }
        try await save()
        for index in missing { blocks[index] = [UInt8](repeating: 0, count: geometry.clusterByteCount) }
        for cluster in places where new.contains(cluster >> shift) { store(1, at: Int(cluster & (1 << shift - 1)), in: cluster >> shift) }
        for (index, cluster) in zip(missing, places) { try await image.write(blocks[index] ?? [], at: cluster << clusterBits) }
        try await image.flush()
        for (index, cluster) in zip(missing, places) {
            table[Int(index)] = cluster << clusterBits
            try await image.writeEntry(table[Int(index)], at: image.header.refcountTableOffset + index * 8)
            changed.remove(index)
        }
        try await image.flush()
        return true
    }

    private func writeBlock(_ index: UInt64, used: UInt64, at cluster: UInt64) async throws(ImageError) {
        blocks[index] = [UInt8](repeating: 0, count: geometry.clusterByteCount)
        for entry in 0..<used { store(1, at: Int(entry), in: index) }
        changed.remove(index)
        try await image.write(blocks[index] ?? [], at: cluster << clusterBits)
    }

    /// A larger refcount table, in the run that the `index`-th block counts: nothing is there yet. First the blocks, then the table.
    private func growTable(for index: UInt64) async throws(ImageError) {
        let first = index << shift
        var blockCount: UInt64 = 1
        var tableClusterCount: UInt64 = 0
        while true {
            tableClusterCount = geometry.clusterCount(of: (index + blockCount) * 8 * 2)
            if blockCount << shift >= blockCount + tableClusterCount { break }
            blockCount += 1
        }
        guard tableClusterCount << clusterBits <= UInt64(FormatLimits.refcountTableByteCount) else {
            throw .refused("the refcount table would be larger than 8 MiB: use larger clusters")
        }
        var larger = table
        larger += [UInt64](repeating: 0, count: Int(tableClusterCount << clusterBits / 8) - larger.count)
        for position in 0..<blockCount {
            let used = min(1 << shift, blockCount + tableClusterCount - position << shift)
            try await writeBlock(index + position, used: used, at: first + position)
            larger[Int(index + position)] = (first + position) << clusterBits
        }
        try await image.writeEntries(larger, at: (first + blockCount) << clusterBits)
        try await image.flush()
        let (oldOffset, oldCount) = (image.header.refcountTableOffset, UInt64(image.header.refcountTableClusterCount))
        image.header.refcountTableOffset = (first + blockCount) << clusterBits
        image.header.refcountTableClusterCount = UInt32(tableClusterCount)
        table = larger
        try await image.writeHeader()
        try await release(oldOffset, clusterCount: oldCount)
    }

    /// Cuts off what is free at the end of the file.
    func trimFile() async throws(ImageError) {
        var end = geometry.clusterCount(of: image.byteCount)
        while end > 0, try await refcount(of: end - 1) == 0 { end -= 1 }
        if end << clusterBits < image.byteCount { try await image.resize(to: end << clusterBits) }
    }
}
