internal import Block
internal import Synchronization

/// Clusters in the file that belong to a request from now on.
struct Allocation: Sendable {
    /// By number, consecutive.
    var clusters: Range<UInt64>
    /// They have never been written and read as zeroes.
    var isZero: Bool
}

// Everything here is called with `lock` held.
extension Metadata {
    /// Takes free clusters out of the file, consecutive and at most `limit`, and makes the file longer if needed.
    ///
    /// - Throws: `.noSpace`; what the file says.
    func allocate(_ limit: UInt64) async throws(BlockError) -> Allocation {
        let clusters = try await takeFreeClusters(limit)
        do throws(BlockError) {
            try await reach(clusters.upperBound)
        } catch {
            try await giveBack(clusters)
            throw error
        }
        return state.withLock { state in
            let isZero = clusters.lowerBound >= state.untouchedFrom
            state.untouchedFrom = max(state.untouchedFrom, clusters.upperBound)
            return Allocation(clusters: clusters, isZero: isZero)
        }
    }

    /// Undoes `allocate` for clusters that no table has ever named.
    func giveBack(_ clusters: Range<UInt64>) async throws(BlockError) {
        try await drop(clusters, mayDiscard: false)
    }

    private func takeFreeClusters(_ limit: UInt64) async throws(BlockError) -> Range<UInt64> {
        while true {
            let answer = state.withLock { state in
                let answer = state.refcounts.findFree(limit: limit, reserved: state.reserved)
                if case .done(let clusters?) = answer { state.refcounts.take(clusters) }
                return answer
            }
            switch answer {
            case .done(let clusters?): return clusters
            case .done(nil): break
            case .load(let index, let offset): try await loadBlock(index, offset)
            case .create(let index): try await createBlock(index)
            case .grow: try await growTable()
            }
        }
    }

    /// Makes the file so long that `clusterCount` clusters are in it.
    private func reach(_ clusterCount: UInt64) async throws(BlockError) {
        let bits = UInt64(geometry.clusterBits)
        guard clusterCount <= FormatLimits.virtualByteCount >> bits, clusterCount << bits <= FormatLimits.hostOffsetMask else {
            throw BlockError(.noSpace, "the image would be longer than the format allows")
        }
        let end = clusterCount << bits
        let size = file.currentByteCount
        guard end > size else { return }
        // In steps, as each is a call to the host; what is left over goes at `close`.
        let step = min(max(size / 8, 1 << 20), 64 << 20)
        let wanted = min((end + step - 1) / step * step, FormatLimits.virtualByteCount)
        do throws(BlockError) {
            try await file.resize(to: wanted)
        } catch where error.kind == .noSpace {
            try await file.resize(to: end)
        } catch where error.kind == .unsupported {
            throw BlockError(.noSpace, "the image has no room left: \(error.detail)")
        }
    }

    // MARK: Refcount blocks

    func loadBlock(_ index: Int, _ offset: UInt64) async throws(BlockError) {
        guard isInFile(offset, UInt64(geometry.clusterByteCount)) else {
            throw await failAsCorrupt("a refcount block at \(offset.hex) lies beyond the end of the file")
        }
        let bytes = try await file.bytes(at: offset, count: geometry.clusterByteCount)
        state.withLock { state in
            state.refcounts.insert(bytes, asBlock: index)
            state.refcounts.shrink(to: max(limits.refcountByteCount, 2 * geometry.clusterByteCount))
        }
    }

    /// Adds a refcount block, in a cluster whose refcount it holds itself.
    private func createBlock(_ index: Int) async throws(BlockError) {
        let place = state.withLock { state -> UInt64? in
            let first = max(state.refcounts.firstCluster(ofBlock: index), state.refcounts.firstPossiblyFree)
            let end = state.refcounts.firstCluster(ofBlock: index + 1)
            guard let cluster = (first..<end).first(where: { !state.reserved.contains($0) }) else {
                state.refcounts.skipBlock(index)
                return nil
            }
            return cluster
        }
        guard let place else { return }
        try await reserveSpace(place..<place + 1)
        state.withLock { state in
            state.refcounts.createBlock(index, at: place)
            state.refcounts.take(place..<place + 1)
            state.reserved.insert(place)
            state.untouchedFrom = max(state.untouchedFrom, place + 1)
        }
    }

    /// Writes zeroes where a table will be, so that a full disk fails the request now and not the image later.
    func reserveSpace(_ clusters: Range<UInt64>) async throws(BlockError) {
        try await reach(clusters.upperBound)
        let zeroes = [UInt8](repeating: 0, count: geometry.clusterByteCount)
        for cluster in clusters { try await file.store(zeroes, at: cluster << UInt64(geometry.clusterBits)) }
    }

    /// Moves the refcount table to a longer place, behind everything that it covers.
    ///
    /// The new table, and the blocks that hold the refcounts of its own clusters and theirs, are on the medium before the header names them.
    private func growTable() async throws(BlockError) {
        let bits = UInt64(geometry.clusterBits)
        let (oldCount, old) = state.withLock { state in
            (
                state.refcounts.table.count,
                state.refcounts.tableOffset >> bits..<(state.refcounts.tableOffset >> bits) + state.refcounts.tableClusterCount
            )
        }
        let clusterEntryCount = geometry.clusterByteCount / 8
        let wanted = max(oldCount + oldCount / 2, oldCount + 1)
        let tableClusterCount = (wanted + clusterEntryCount - 1) / clusterEntryCount
        guard tableClusterCount * geometry.clusterByteCount <= FormatLimits.refcountTableByteCount else {
            throw BlockError(.noSpace, "the refcount table of the image is as long as it may be")
        }
        // Blocks for the clusters of the table and their own.
        let perBlock = geometry.refcountBlockEntryCount
        var blockCount = 1
        while blockCount * perBlock < blockCount + tableClusterCount { blockCount += 1 }
        guard oldCount + blockCount <= tableClusterCount * clusterEntryCount else {
            throw BlockError(.noSpace, "the refcount table of the image cannot become longer")
        }
        let first = UInt64(oldCount) << UInt64(geometry.refcountBlockBits)
        let own = first..<first + UInt64(blockCount + tableClusterCount)
        guard !state.withLock({ $0.reserved.overlaps(own) }) else {
            throw await failAsCorrupt("tables lie beyond what the refcount table covers")
        }
        try await reserveSpace(own)
        let place = (first + UInt64(blockCount)) << bits
        let (pieces, words) = state.withLock { state in
            state.refcounts.lengthenTable(to: tableClusterCount * clusterEntryCount)
            for index in 0..<blockCount {
                state.refcounts.createBlock(oldCount + index, at: first + UInt64(index))
            }
            for index in 0..<blockCount {
                let low = state.refcounts.firstCluster(ofBlock: oldCount + index)
                state.refcounts.set(1, for: low..<min(low + UInt64(perBlock), own.upperBound))
            }
            state.reserved.insert(own)
            state.untouchedFrom = max(state.untouchedFrom, own.upperBound)
            return (state.refcounts.unwrittenBlocks(), state.refcounts.table)
        }
        do throws(BlockError) {
            for piece in pieces { try await file.store(piece.bytes, at: piece.offset) }
            try await file.store([UInt8](bigEndianWords: words, count: words.count), at: place)
            try await file.flush()
            try await writeRefcountTableField(place, UInt32(tableClusterCount))
            try await file.flush()
        } catch {
            fail(error)
            throw error
        }
        state.withLock { state in
            state.refcounts.moveTable(to: place, clusterCount: UInt64(tableClusterCount))
            state.header.refcountTableOffset = place
            state.header.refcountTableClusterCount = UInt32(tableClusterCount)
            state.free(old, mayDiscard: true)
        }
    }

    // MARK: References

    /// Takes one reference from each cluster; those that are free then may be used again at once.
    func drop(_ clusters: Range<UInt64>, mayDiscard: Bool) async throws(BlockError) {
        let perBlock = UInt64(geometry.refcountBlockEntryCount)
        var rest = clusters
        while let first = rest.first {
            let part = first..<min(rest.upperBound, (first / perBlock + 1) * perBlock)
            let answer = state.withLock { $0.refcounts.drop(part) }
            switch answer {
            case .done(let free?):
                state.withLock { state in
                    for cluster in free { state.reserved.remove(cluster) }
                }
                if mayDiscard { await discard(free) }
                rest = part.upperBound..<rest.upperBound
            case .load(let index, let offset):
                try await loadBlock(index, offset)
            case .done(nil), .create, .grow:
                throw await failAsCorrupt("clusters \(part) are in use and have no reference")
            }
        }
    }

    /// Gives the space of free clusters back to the file below. A hint: failures change nothing.
    private func discard(_ clusters: [UInt64]) async {
        guard file.info.abilities.discard != .none else { return }
        let bits = UInt64(geometry.clusterBits)
        var index = 0
        while index < clusters.count {
            var end = index + 1
            while end < clusters.count, clusters[end] == clusters[end - 1] + 1 { end += 1 }
            if let range = ByteRange(
                start: clusters[index] << bits, count: UInt64(end - index) << bits, within: file.currentByteCount)
            {
                try? await file.discard(range)
            }
            index = end
        }
    }
}

extension Metadata.State {
    /// Notes that no table in memory names these clusters any more, once.
    mutating func free(_ clusters: Range<UInt64>, mayDiscard: Bool) {
        guard !clusters.isEmpty else { return }
        freedClusterCount += UInt64(clusters.count)
        if let last = freed.last, last.mayDiscard == mayDiscard, last.clusters.upperBound == clusters.lowerBound {
            freed[freed.count - 1].clusters = last.clusters.lowerBound..<clusters.upperBound
        } else {
            freed.append(Quarantine.Freed(clusters: clusters, mayDiscard: mayDiscard))
        }
    }
}

extension Metadata {
    /// How many clusters of the file have references; stops counting at `limit`. For read-only images too: reads the refcounts beside the
    /// others.
    func usedClusterCount(upTo limit: UInt64) async throws(BlockError) -> UInt64 {
        let header = state.withLock { $0.header }
        let size = file.currentByteCount
        guard isInFile(header.refcountTableOffset, header.refcountTableByteCount) else { return 0 }
        let words = try await file.bytes(at: header.refcountTableOffset, count: Int(header.refcountTableByteCount)).bigEndianWords
        let perBlock = UInt64(geometry.refcountBlockEntryCount)
        let end = geometry.clusterCount(of: size)
        let width = geometry.refcountWidth
        var count: UInt64 = 0
        for (index, word) in words.enumerated() {
            let base = UInt64(index) * perBlock
            guard base < end, count < limit else { break }
            let offset = RefcountTableEntry(rawValue: word).blockOffset
            guard offset != 0, isInFile(offset, UInt64(geometry.clusterByteCount)) else { continue }
            let block = try await file.bytes(at: offset, count: geometry.clusterByteCount)
            for entry in 0..<Int(min(perBlock, end - base)) where width.refcount(at: entry, in: block.rawBytes) > 0 { count += 1 }
        }
        return count
    }
}
