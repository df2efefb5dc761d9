import Block

/// New refcount structures for an image whose own are damaged. They stand in one piece behind the end of the file, complete and durable
/// before the header names them, so a power cut leaves the old state or the new one. Nothing refers to the old ones any more then: their
/// clusters are free.
extension ImageChecker {
    /// - Precondition: `counts` holds all references but those of the old refcount structures.
    func rebuild() async throws(ImageError) {
        let plan = try RebuildPlan(image, counts)
        let clusterBits = UInt64(geometry.clusterBits)
        // What refers to the place where they would stand would take them for its own data.
        guard (plan.first + plan.clusterCount) << clusterBits <= firstOutside else {
            throw .refused("new refcounts need a place behind the end of the file, where damaged entries lead to, too")
        }
        for cluster in plan.first..<plan.first + plan.clusterCount {
            try decoding { () throws(FormatError) in try counts.add(to: cluster) }
        }
        var table = [UInt64](repeating: 0, count: plan.tableClusterCount << Int(clusterBits) / 8)
        blocks = []
        for (position, index) in plan.blockIndices.enumerated() {
            let offset = (plan.first + UInt64(plan.tableClusterCount + position)) << clusterBits
            try await image.write(try block(Int(index)), at: offset)
            table[Int(index)] = offset
            blocks.append((Int(index), offset))
        }
        try await image.writeEntries(table, at: plan.first << clusterBits)
        try await image.flush()
        image.header.refcountTableOffset = plan.first << clusterBits
        image.header.refcountTableClusterCount = UInt32(plan.tableClusterCount)
        try await image.writeHeader()
        mustRebuild = false
    }

    /// The refcounts that the `index`-th block has to have.
    private func block(_ index: Int) throws(ImageError) -> [UInt8] {
        let width = geometry.refcountWidth
        var block = [UInt8](repeating: 0, count: geometry.clusterByteCount)
        var span = block.mutableSpan
        // SAFETY: any bit pattern is a byte.
        var bytes = unsafe span.mutableBytes
        let first = UInt64(index) << UInt64(geometry.refcountBlockBits)
        for entry in 0..<geometry.refcountBlockEntryCount {
            let count = counts[first + UInt64(entry)]
            guard count <= width.maximum else {
                throw .refused("cluster \(first + UInt64(entry)) has \(count) references, more than \(width.bitCount) bits can count")
            }
            if count > 0 { width.setRefcount(count, at: entry, in: &bytes) }
        }
        return block
    }
}

/// Where new refcount structures go: table, then blocks, in consecutive clusters.
private struct RebuildPlan {
    let first: UInt64
    let tableClusterCount: Int
    let blockIndices: [UInt64]
    var clusterCount: UInt64 { UInt64(tableClusterCount + blockIndices.count) }

    /// They count themselves, so their number is found by trying: it grows until it is enough.
    init(_ image: ImageFile, _ counts: ReferenceCounts) throws(ImageError) {
        let geometry = image.geometry
        let shift = UInt64(geometry.refcountBlockBits)
        first = geometry.clusterCount(of: image.byteCount)
        var indices: Set<UInt64> = []
        for range in counts.ranges {
            for index in range.lowerBound >> shift...(range.upperBound - 1) >> shift where !indices.contains(index) {
                let start = index << shift
                if !counts.isEmpty(max(start, range.lowerBound)..<min(start + 1 << shift, range.upperBound)) { indices.insert(index) }
            }
        }
        var tableCount: UInt64 = 1
        while true {
            let last = first + tableCount + UInt64(indices.count) - 1
            let before = (tableCount, indices.count)
            indices.formUnion(first >> shift...last >> shift)
            tableCount = max(tableCount, geometry.clusterCount(of: ((last >> shift) + 1) * 8))
            if before == (tableCount, indices.count) { break }
        }
        guard tableCount << UInt64(geometry.clusterBits) <= UInt64(FormatLimits.refcountTableByteCount) else {
            throw .refused("the refcount table of this file would be larger than 8 MiB")
        }
        tableClusterCount = Int(tableCount)
        blockIndices = indices.sorted()
    }
}
