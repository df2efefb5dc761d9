import Block

/// Counts what refers to each cluster of an image, and compares with its refcounts.
///
/// Bounded for hostile images: memory by `ReferenceCounts`; each L2 table is read once however many L1 entries name it; and the L1
/// tables of all snapshots together have at most `l1EntryLimit` entries.
final class ImageChecker {
    static let l1EntryLimit: UInt64 = 1 << 28

    let image: ImageFile
    var report = CheckReport()
    var counts = ReferenceCounts()
    /// How many L1 entries name each L2 table: its clusters have so many references more.
    private var tables = ReferenceCounts()
    /// The L2 tables of the disk itself, in its order.
    private var activeTables: [UInt64] = []
    private var l1EntryCount: UInt64 = 0
    /// Header, tables and directories, which have their clusters for themselves.
    private var soleUses: [(what: String, clusters: ClosedRange<UInt64>)] = []
    /// Some of them have not: to correct one of the two uses would damage the other, so nothing is repaired.
    private(set) var hasOverlaps = false
    /// The refcount structures themselves are damaged: only new ones help.
    var mustRebuild = false
    /// A part of the active L1 table, while its flags are looked at.
    var l1Piece: [UInt64] = []
    /// The lowest place behind the end of the file that something refers to.
    var firstOutside = UInt64.max
    /// Index and place of the refcount blocks that may be read.
    var blocks: [(index: Int, offset: UInt64)] = []

    var geometry: ImageGeometry { image.geometry }
    private var clusterBits: UInt64 { UInt64(geometry.clusterBits) }

    init(_ image: ImageFile) { self.image = image }

    /// Counts all references; those of the refcount structures themselves only if asked.
    func count(includingRefcounts: Bool = true) async throws(ImageError) {
        let header = image.header
        report.clusterCount = geometry.clusterCount(of: header.virtualByteCount)
        try referOnce(to: 0, byteCount: UInt64(geometry.clusterByteCount), "header")
        try await countL1(header.l1TableOffset, header.l1EntryCount, isActive: true)
        try await countSnapshots()
        try await countBitmaps()
        if let (offset, byteCount) = encryptionHeader { try referOnce(to: offset, byteCount: byteCount, "encryption header") }
        findOverlaps()
        try await countRemainingTables()
        // Refcount structures that overlap are written anew somewhere else.
        if includingRefcounts { try await countRefcountBlocks() }
    }

    private var encryptionHeader: (UInt64, UInt64)? {
        for case .encryption(let offset, let byteCount) in image.header.extensions { return (offset, byteCount) }
        return nil
    }

    /// Adds a reference to every cluster of a part of the file. The last cluster of the file need not be complete.
    ///
    /// Returns false, with a finding, when the part lies outside of the file.
    @discardableResult
    func refer(to offset: UInt64, byteCount: UInt64, times: UInt64 = 1, _ what: @autoclosure () -> String) throws(ImageError) -> Bool {
        guard byteCount > 0 else { return true }
        guard isInFile(offset, byteCount) else {
            report.corruption("\(what()): \(byteCount) bytes at \(offset.hex) go beyond the end of the file")
            firstOutside = min(firstOutside, max(offset, image.byteCount))
            return false
        }
        let last = (offset + byteCount - 1) >> clusterBits
        for cluster in offset >> clusterBits...last {
            try decoding { () throws(FormatError) in try counts.add(times, to: cluster) }
        }
        return true
    }

    /// For what no table may share a cluster with.
    @discardableResult
    private func referOnce(to offset: UInt64, byteCount: UInt64, _ what: String) throws(ImageError) -> Bool {
        guard try refer(to: offset, byteCount: byteCount, what) else { return false }
        if byteCount > 0 { soleUses.append((what, offset >> clusterBits...(offset + byteCount - 1) >> clusterBits)) }
        return true
    }

    /// All but L2 tables lie in `soleUses`, and those are in `tables`. Data that lies there, too, is copied when it is written.
    private func findOverlaps() {
        var end: UInt64?
        for (what, clusters) in soleUses.sorted(by: { $0.clusters.lowerBound < $1.clusters.lowerBound }) {
            let first = clusters.lowerBound
            if let cluster = end.map({ first <= $0 }) == true ? first : clusters.first(where: { tables[$0] > 0 }) {
                report.corruption("\(what): cluster \(cluster) is used by another table, too")
                hasOverlaps = true
            }
            end = max(end ?? 0, clusters.upperBound)
        }
    }

    func isInFile(_ offset: UInt64, _ byteCount: UInt64) -> Bool {
        let (end, overflow) = offset.addingReportingOverflow(byteCount)
        guard !overflow, end <= FormatLimits.virtualByteCount else { return false }
        // Whole clusters: what would begin at the very end of the file is outside, or a repair, which writes there, would give it contents.
        return geometry.clusterCount(of: end) <= geometry.clusterCount(of: image.byteCount)
    }
}

// MARK: Guest clusters

extension ImageChecker {
    private func countL1(_ offset: UInt64, _ entryCount: UInt32, isActive: Bool) async throws(ImageError) {
        let name = isActive ? "active L1 table" : "L1 table of a snapshot"
        guard try referOnce(to: offset, byteCount: UInt64(entryCount) * 8, name) else { return }
        l1EntryCount += UInt64(entryCount)
        guard l1EntryCount <= Self.l1EntryLimit else {
            throw .format(.unsupported("the L1 tables of all snapshots have more than \(Self.l1EntryLimit) entries"))
        }
        var order: [UInt64] = []
        var index = 0
        while index < Int(entryCount) {
            let count = min(65536, Int(entryCount) - index)
            for raw in try await image.readEntries(at: offset + UInt64(index) * 8, count: count) {
                let entry = L1Entry(rawValue: raw)
                defer { index += 1 }
                if entry.reservedBits != 0 { report.corruption("\(name), entry \(index): reserved bits are set: \(raw.hex)") }
                guard entry.isAllocated else { continue }
                let table = entry.tableOffset
                guard geometry.isAligned(table) else {
                    report.corruption("\(name), entry \(index): the L2 table at \(table.hex) is not aligned to a cluster")
                    continue
                }
                guard try refer(to: table, byteCount: UInt64(geometry.clusterByteCount), "L2 table of entry \(index)") else { continue }
                try decoding { () throws(FormatError) in try tables.add(to: table >> clusterBits) }
                if isActive { order.append(table) }
            }
        }
        // The active tables in the disk's order, for the fragments; those of snapshots when all are known.
        if isActive { activeTables = order }
    }

    /// All L1 tables are known: now each L2 table once, first those of the active disk.
    private func countRemainingTables() async throws(ImageError) {
        for table in activeTables {
            let times = tables[table >> clusterBits]
            guard times > 0 else { continue }
            tables.clear(table >> clusterBits)
            try await countL2(table, times: times, isActive: true)
        }
        activeTables = []
        for range in tables.ranges {
            for cluster in range where tables[cluster] > 0 {
                try await countL2(cluster << clusterBits, times: tables[cluster], isActive: false)
            }
        }
    }

    private func countL2(_ table: UInt64, times: UInt64, isActive: Bool) async throws(ImageError) {
        let bytes = try await image.read(at: table, count: geometry.clusterByteCount)
        let span = bytes.rawBytes
        var expected: UInt64?
        for index in 0..<geometry.l2EntryCount {
            let entry = L2Entry(decoding: span, at: index, in: geometry)
            guard entry != .unallocated else { continue }
            let next = try countEntry(entry, times) { "L2 table at \(table.hex), entry \(index)" }
            guard isActive, entry.isCompressed || next != nil else { continue }
            report.allocatedClusterCount += 1
            if entry.isCompressed {
                report.compressedClusterCount += 1
                report.fragmentedClusterCount += 1
            } else if let next {
                if let expected, expected != next { report.fragmentedClusterCount += 1 }
                expected = next &+ UInt64(geometry.clusterByteCount)
            }
        }
    }

    /// Counts what one L2 entry refers to. Gives the host cluster of a standard one that is allocated.
    private func countEntry(_ entry: L2Entry, _ times: UInt64, _ place: () -> String) throws(ImageError) -> UInt64? {
        let hasDataFile = image.header.hasDataFile
        if entry.reservedBits(in: geometry) != 0 {
            report.corruption("\(place()): reserved bits are set: \(entry.rawDescriptor.hex)")
        }
        if entry.isCompressed {
            guard !hasDataFile else {
                report.corruption("\(place()): a compressed cluster in an image with an external data file")
                return nil
            }
            if entry.isCopied { report.corruption("\(place()): a compressed cluster is marked as written in place") }
            if geometry.hasExtendedL2, entry.subclusters.rawValue != 0 {
                report.corruption("\(place()): a compressed cluster has subclusters")
            }
            let cluster = CompressedCluster(rawDescriptor: entry.rawDescriptor, in: geometry)
            try refer(to: cluster.hostOffset, byteCount: UInt64(cluster.byteCount), times: times, "\(place()): compressed cluster")
            return nil
        }
        if geometry.hasExtendedL2 {
            guard entry.subclusters.isConsistent else {
                report.corruption("\(place()): subclusters are data and zeroes at once")
                return nil
            }
            if entry.hostOffset == 0, !hasDataFile, entry.subclusters.allocated != 0 {
                report.corruption("\(place()): subclusters with data and no cluster")
                return nil
            }
        }
        let offset = entry.hostOffset
        guard offset != 0 || (hasDataFile && entry.isCopied) else { return nil }
        guard geometry.isAligned(offset) else {
            report.corruption("\(place()): the cluster at \(offset.hex) is not aligned")
            return nil
        }
        if !hasDataFile {
            try refer(to: offset, byteCount: UInt64(geometry.clusterByteCount), times: times, "\(place()): cluster")
        }
        return offset
    }
}

// MARK: Everything else

extension ImageChecker {
    private func countSnapshots() async throws(ImageError) {
        guard image.header.snapshotCount > 0 else { return }
        let table: (entries: [SnapshotEntry], byteCount: Int)
        do throws(ImageError) {
            table = try await image.snapshotTable()
        } catch .format(let error) {
            report.corruption("snapshot table: \(error)")
            return
        }
        try referOnce(to: image.header.snapshotTableOffset, byteCount: UInt64(table.byteCount), "snapshot table")
        if image.header.hasDataFile { report.corruption("snapshots in an image with an external data file") }
        for entry in table.entries { try await countL1(entry.l1TableOffset, entry.l1EntryCount, isActive: false) }
    }

    private func countBitmaps() async throws(ImageError) {
        guard let place = image.header.bitmaps, image.header.autoclearFeatures.contains(.bitmaps) else { return }
        guard try referOnce(to: place.directoryOffset, byteCount: place.directoryByteCount, "bitmap directory") else { return }
        let entries: [BitmapDirectoryEntry]
        do throws(ImageError) {
            entries = try await image.bitmaps()
        } catch .format(let error) {
            report.corruption(error.detail)
            return
        }
        for entry in entries { try await countBitmap(entry) }
    }

    private func countBitmap(_ bitmap: BitmapDirectoryEntry) async throws(ImageError) {
        let name = String(decoding: bitmap.name, as: UTF8.self)
        let byteCount = UInt64(bitmap.tableEntryCount) * 8
        guard try referOnce(to: bitmap.tableOffset, byteCount: byteCount, "table of bitmap \"\(name)\"") else { return }
        var index = 0
        while index < Int(bitmap.tableEntryCount) {
            let count = min(65536, Int(bitmap.tableEntryCount) - index)
            for raw in try await image.readEntries(at: bitmap.tableOffset + UInt64(index) * 8, count: count) {
                index += 1
                let entry: BitmapTableEntry
                do throws(FormatError) {
                    entry = try BitmapTableEntry(rawValue: raw, in: geometry)
                } catch {
                    report.corruption("bitmap \"\(name)\": \(error)")
                    continue
                }
                guard case .cluster(let offset) = entry else { continue }
                try refer(to: offset, byteCount: UInt64(geometry.clusterByteCount), "data of bitmap \"\(name)\"")
            }
        }
    }

    private func countRefcountBlocks() async throws(ImageError) {
        let header = image.header
        guard header.refcountTableClusterCount > 0, header.refcountTableOffset > 0 else {
            report.corruption("the image has no refcount table")
            mustRebuild = true
            return
        }
        guard try refer(to: header.refcountTableOffset, byteCount: header.refcountTableByteCount, "refcount table") else {
            mustRebuild = true
            return
        }
        let entries = try await image.readEntries(at: header.refcountTableOffset, count: Int(header.refcountTableByteCount / 8))
        for index in entries.indices where entries[index] != 0 {
            let entry = RefcountTableEntry(rawValue: entries[index])
            let offset = entry.blockOffset
            if entry.reservedBits != 0 { report.corruption("refcount table, entry \(index): reserved bits are set: \(entry.rawValue.hex)") }
            guard geometry.isAligned(offset), offset != 0 else {
                report.corruption("refcount table, entry \(index): the block at \(offset.hex) is not aligned to a cluster")
                mustRebuild = true
                continue
            }
            guard try refer(to: offset, byteCount: UInt64(geometry.clusterByteCount), "refcount block \(index)") else {
                mustRebuild = true
                continue
            }
            guard counts[offset >> clusterBits] == 1 else {
                report.corruption("refcount block \(index) at \(offset.hex) is used for something else, too")
                mustRebuild = true
                continue
            }
            blocks.append((index, offset))
        }
    }
}
