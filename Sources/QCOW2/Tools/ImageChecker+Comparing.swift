import Block

extension ImageChecker {
    /// Holds the refcounts of the image against what was counted, one block after the other, and corrects them if asked.
    ///
    /// Clusters behind the end of the file are left alone: nothing can refer to them.
    func compare(repair: RepairMode?) async throws(ImageError) {
        let entryCount = UInt64(geometry.refcountBlockEntryCount)
        let clusterCount = geometry.clusterCount(of: image.byteCount)
        var highest = counts.highest ?? 0
        var covered: Set<UInt64> = []
        for (index, offset) in blocks {
            let first = UInt64(index) * entryCount
            covered.insert(UInt64(index))
            guard first < clusterCount else { continue }
            var block = try await image.read(at: offset, count: geometry.clusterByteCount)
            let range = first..<min(first + entryCount, clusterCount)
            let (isChanged, last) = compare(&block, range, repair)
            if let last { highest = max(highest, last) }
            if isChanged { try await image.write(block, at: offset) }
        }
        try compareUncovered(covered)
        report.imageEndOffset = (highest + 1) << UInt64(geometry.clusterBits)
    }

    private func compare(_ block: inout [UInt8], _ range: Range<UInt64>, _ repair: RepairMode?) -> (isChanged: Bool, last: UInt64?) {
        let width = geometry.refcountWidth
        guard !block.rawBytes.isZero || !counts.isEmpty(range) else { return (false, nil) }
        var isChanged = false
        var last: UInt64?
        for cluster in range {
            let index = Int(cluster - range.lowerBound)
            let refcount = width.refcount(at: index, in: block.rawBytes)
            let expected = counts[cluster]
            if refcount > 0 || expected > 0 { last = cluster }
            guard refcount != expected else { continue }
            // A cluster that counts as free may have been given away again: in-place repair is not safe then, new structures are.
            if refcount == 0 { mustRebuild = true }
            let isLeak = refcount > expected
            let isFixed = (isLeak ? repair != nil : repair == .all && refcount > 0) && expected <= width.maximum
            report.note(
                "\(isFixed ? "Repairing" : isLeak ? "Leaked" : "ERROR") cluster \(cluster): refcount \(refcount), references \(expected)")
            if isFixed {
                var span = block.mutableSpan
                // SAFETY: any bit pattern is a byte.
                var bytes = unsafe span.mutableBytes
                width.setRefcount(expected, at: index, in: &bytes)
                isChanged = true
            }
            switch (isLeak, isFixed) {
            case (true, true): report.fixedLeakCount += 1
            case (true, false): report.leakCount += 1
            case (false, true): report.fixedCorruptionCount += 1
            case (false, false): report.corruptionCount += 1
            }
        }
        return (isChanged, last)
    }

    /// References to clusters that no block covers: their refcount is 0.
    private func compareUncovered(_ covered: Set<UInt64>) throws(ImageError) {
        let entryCount = UInt64(geometry.refcountBlockEntryCount)
        for range in counts.ranges {
            for cluster in range where counts[cluster] > 0 && !covered.contains(cluster / entryCount) {
                mustRebuild = true
                report.corruption("cluster \(cluster): refcount 0, references \(counts[cluster])")
            }
        }
    }

    /// Whether each entry of the active tables says rightly if its target has exactly one reference.
    ///
    /// A lost flag costs a copy; a wrong one lets a write go into a snapshot. Corrected if asked, and the corrected L2 table then written.
    func checkCopiedFlags(repair: RepairMode?) async throws(ImageError) {
        let header = image.header
        guard isInFile(header.l1TableOffset, header.l1TableByteCount) else { return }
        let reader = RefcountReader(image, blocks)
        var seen: Set<UInt64> = []
        for index in 0..<Int(header.l1EntryCount) {
            let position = header.l1TableOffset + UInt64(index) * 8
            if index % 4096 == 0 {
                l1Piece = try await image.readEntries(at: position, count: min(4096, Int(header.l1EntryCount) - index))
            }
            var entry = L1Entry(rawValue: l1Piece[index % 4096])
            let table = entry.tableOffset
            guard entry.isAllocated, geometry.isAligned(table), isInFile(table, UInt64(geometry.clusterByteCount)) else { continue }
            let isSingle = try await reader.refcount(of: table) == 1
            if entry.isCopied != isSingle {
                let isFixed = repair == .all
                noteFlag(isFixed, "L1 entry \(index) (\(entry.rawValue.hex))", isSingle)
                if isFixed {
                    entry = L1Entry(rawValue: entry.rawValue ^ EntryFlags.copied)
                    try await image.writeEntry(entry.rawValue, at: position)
                }
            }
            // A table that is named twice is looked through once.
            if seen.insert(table).inserted { try await checkCopiedFlags(of: table, reader, repair) }
        }
        l1Piece = []
    }

    private func checkCopiedFlags(of table: UInt64, _ reader: RefcountReader, _ repair: RepairMode?) async throws(ImageError) {
        var bytes = try await image.read(at: table, count: geometry.clusterByteCount)
        var isChanged = false
        for index in 0..<geometry.l2EntryCount {
            var entry = L2Entry(decoding: bytes.rawBytes, at: index, in: geometry)
            guard !entry.isCompressed, entry.hostOffset != 0 || entry.isCopied, geometry.isAligned(entry.hostOffset) else { continue }
            // What lies in a data file has one reference always.
            let hasDataFile = image.header.hasDataFile
            guard hasDataFile || isInFile(entry.hostOffset, UInt64(geometry.clusterByteCount)) else { continue }
            let isSingle = hasDataFile ? true : entry.hostOffset != 0 ? try await reader.refcount(of: entry.hostOffset) == 1 : false
            guard entry.isCopied != isSingle else { continue }
            let isFixed = repair == .all
            noteFlag(isFixed, "L2 table at \(table.hex), entry \(index) (\(entry.rawDescriptor.hex))", isSingle)
            guard isFixed else { continue }
            entry.rawDescriptor ^= EntryFlags.copied
            var span = bytes.mutableSpan
            // SAFETY: any bit pattern is a byte.
            var raw = unsafe span.mutableBytes
            entry.encode(into: &raw, at: index, in: geometry)
            isChanged = true
        }
        if isChanged { try await image.write(bytes, at: table) }
    }

    private func noteFlag(_ isFixed: Bool, _ place: String, _ isSingle: Bool) {
        let state = isSingle ? "has one reference and is not marked so" : "is marked as having one reference and has not"
        report.note("\(isFixed ? "Repairing" : "ERROR") \(place): \(state)")
        if isFixed { report.fixedCorruptionCount += 1 } else { report.corruptionCount += 1 }
    }
}

/// Refcounts as the image has them, for a caller who goes roughly in order: the blocks used last stay in memory.
final class RefcountReader {
    private let image: ImageFile
    private var offsets: [UInt64: UInt64] = [:]
    private var cache: [UInt64: [UInt8]] = [:]
    private static let cacheByteCountLimit = 8 << 20

    /// - Parameter blocks: those that may be read; all other refcounts are 0.
    init(_ image: ImageFile, _ blocks: [(index: Int, offset: UInt64)]) {
        self.image = image
        for (index, offset) in blocks { offsets[UInt64(index)] = offset }
    }

    func refcount(of offset: UInt64) async throws(ImageError) -> UInt64 {
        let geometry = image.geometry
        let cluster = offset >> UInt64(geometry.clusterBits)
        let index = cluster >> UInt64(geometry.refcountBlockBits)
        guard let place = offsets[index] else { return 0 }
        let entry = Int(cluster & UInt64(geometry.refcountBlockEntryCount - 1))
        if let block = cache[index] { return geometry.refcountWidth.refcount(at: entry, in: block.rawBytes) }
        let block = try await image.read(at: place, count: geometry.clusterByteCount)
        if (cache.count + 1) * geometry.clusterByteCount > Self.cacheByteCountLimit { cache = [:] }
        cache[index] = block
        return geometry.refcountWidth.refcount(at: entry, in: block.rawBytes)
    }
}
