internal import Block

/// Writes bitmaps into clusters of their own. Nothing in the image leads there yet.
struct BitmapWriter {
    let metadata: Metadata
    /// What was written, in this order.
    private(set) var clusters: [Range<UInt64>] = []

    init(metadata: Metadata) { self.metadata = metadata }

    private var geometry: ImageGeometry { metadata.geometry }

    /// Returns where the bitmap's table is.
    mutating func write(_ bitmap: DirtyBitmap) async throws(BlockError) -> (offset: UInt64, entryCount: UInt32) {
        let shift = bitmap.granularity.trailingZeroBitCount
        guard let count = BitmapDirectoryEntry.tableEntryCount(for: bitmap.byteCount, granularityBits: shift, in: geometry) else {
            throw BlockError(.unsupported, "bitmap \"\(bitmap.name)\" is too large to be stored")
        }
        var table: [UInt64] = []
        let bytesPerCluster = UInt64(geometry.clusterByteCount) * 8 << UInt64(shift)
        var rest = ByteRange(ofDevice: bitmap.byteCount)
        for _ in 0..<max(count, 1) {
            let part = rest.prefix(bytesPerCluster)
            rest = rest.dropFirst(part.count)
            table.append(try await write(bitmap, part, shift).rawValue)
        }
        let bytes = [UInt8](bigEndianWords: table, count: table.count)
        return (try await place(bytes), UInt32(table.count))
    }

    /// The bits of one cluster of the bitmap.
    private mutating func write(_ bitmap: DirtyBitmap, _ part: ByteRange, _ shift: Int) async throws(BlockError) -> BitmapTableEntry {
        guard var area = bitmap.nextDirtyArea(in: part) else { return .allZeroes }
        var bytes = [UInt8](repeating: 0, count: geometry.clusterByteCount)
        var rest = part
        while true {
            let first = Int((area.start - part.start) >> UInt64(shift))
            let last = Int((area.end - 1 - part.start) >> UInt64(shift))
            var bit = first
            while bit <= last {
                if bit & 7 == 0, last - bit >= 7 {
                    bytes[bit >> 3] = .max
                    bit += 8
                } else {
                    bytes[bit >> 3] |= 1 << UInt8(bit & 7)
                    bit += 1
                }
            }
            rest = part.dropFirst(area.end - part.start)
            guard !rest.isEmpty, let next = bitmap.nextDirtyArea(in: rest) else { break }
            area = next
        }
        return .cluster(try await place(bytes))
    }

    /// Writes `bytes` into consecutive clusters of their own and returns their offset.
    mutating func place(_ bytes: [UInt8]) async throws(BlockError) -> UInt64 {
        let (metadata, geometry) = (metadata, geometry)
        let wanted = max(geometry.clusterCount(of: UInt64(bytes.count)), 1)
        let clusters = try await metadata.lock.withLock { () async throws(BlockError) in
            try await metadata.allocateConsecutive(wanted)
        }
        self.clusters.append(clusters)
        let offset = clusters.lowerBound << UInt64(geometry.clusterBits)
        var padded = bytes
        padded += [UInt8](repeating: 0, count: Int(wanted) << geometry.clusterBits - bytes.count)
        try await metadata.file.store(padded, at: offset)
        return offset
    }

    /// Undoes everything.
    func giveBack() async {
        try? await metadata.lock.withLock { () async throws(BlockError) in
            for clusters in clusters { try await metadata.giveBack(clusters) }
        }
    }
}

extension Metadata {
    /// As `allocate`, but all of them or none: what is shorter is passed over. With `lock` held.
    func allocateConsecutive(_ count: UInt64) async throws(BlockError) -> Range<UInt64> {
        var passed: [Range<UInt64>] = []
        var found: Range<UInt64>?
        while found == nil {
            let clusters = try await allocate(count).clusters
            // Runs end where a refcount block ends: the next may continue it.
            if let last = passed.last, last.upperBound == clusters.lowerBound, UInt64(last.count + clusters.count) >= count {
                passed.removeLast()
                let end = last.lowerBound + count
                found = last.lowerBound..<end
                if clusters.upperBound > end { passed.append(end..<clusters.upperBound) }
            } else if UInt64(clusters.count) == count {
                found = clusters
            } else if let last = passed.last, last.upperBound == clusters.lowerBound {
                passed[passed.count - 1] = last.lowerBound..<clusters.upperBound
            } else {
                passed.append(clusters)
            }
        }
        for clusters in passed { try await giveBack(clusters) }
        return found ?? 0..<0
    }
}
