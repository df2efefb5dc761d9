internal import Block
internal import Synchronization

extension Metadata {
    /// An L2 table that may be changed: a new one, a copy of one that a snapshot shares, or the one that is there. Called with `lock` held.
    func writableTable(_ l1Index: Int) async throws(BlockError) -> L2Table {
        while true {
            let entry = L1Entry(rawValue: l1[l1Index])
            guard entry.isAllocated else { return try await createTable(l1Index) }
            guard let table = try await table(l1Index) else {
                throw await failAsCorrupt("an L1 entry has changed by itself")
            }
            if table.isSuspect {
                throw await failAsCorrupt("the L2 table at \(table.hostOffset.hex) names clusters that belong to other tables")
            }
            if entry.isCopied { return table }
            if try await copyTable(table, entry) { return table }
        }
    }

    private func createTable(_ l1Index: Int) async throws(BlockError) -> L2Table {
        let offset = try await allocateTable()
        let table = L2Table(l1Index: l1Index, hostOffset: offset, words: [], geometry: geometry, isNew: true)
        cache.insert(new: table)
        setL1Entry(l1Index, offset, table)
        return table
    }

    /// Moves a table that somebody else uses, too. False: it went out of memory meanwhile.
    private func copyTable(_ table: L2Table, _ entry: L1Entry) async throws(BlockError) -> Bool {
        let bits = UInt64(geometry.clusterBits)
        let offset = try await allocateTable()
        let change = table.move(to: offset)
        guard change != .retired else {
            try await giveBack(offset >> bits..<(offset >> bits) + 1)
            return false
        }
        let old = entry.tableOffset >> bits
        setL1Entry(table.l1Index, offset, change == .madeDirty ? table : nil)
        state.withLock { $0.free(old..<old + 1, mayDiscard: false) }
        return true
    }

    private func allocateTable() async throws(BlockError) -> UInt64 {
        let clusters = try await allocate(1).clusters
        do throws(BlockError) {
            try await reserveSpace(clusters)
        } catch {
            try await giveBack(clusters)
            throw error
        }
        state.withLock { $0.reserved.insert(clusters) }
        return clusters.lowerBound << UInt64(geometry.clusterBits)
    }

    private func setL1Entry(_ index: Int, _ offset: UInt64, _ dirtyTable: L2Table?) {
        state.withLock { state in
            l1.store(L1Entry(tableOffset: offset, isCopied: true).rawValue, at: index)
            state.dirtyL1Entries.insert(index)
            if let dirtyTable { state.dirtyTables.append(dirtyTable) }
        }
    }

    /// Sets L2 entries of consecutive clusters that one table maps. What the old entries named, and the new ones do not, is freed.
    /// Called with `lock` held.
    ///
    /// - Parameter freesOld: also what is not `isCopied` loses a reference; false for clusters that keep their place.
    func setEntries(_ l1Index: Int, from index: Int, to entries: [L2Entry], mayDiscard: Bool) async throws(BlockError) {
        guard !entries.isEmpty else { return }
        while true {
            let table = try await writableTable(l1Index)
            let old = (0..<entries.count).map { table.entry(at: index + $0) }
            switch table.change(from: index, to: entries) {
            case .retired: continue
            case .madeDirty: state.withLock { $0.dirtyTables.append(table) }
            case .done: break
            }
            guard dataFile == nil else { return }
            let bits = UInt64(geometry.clusterBits)
            state.withLock { state in
                for (old, new) in zip(old, entries) {
                    if old.isCompressed {
                        let clusters = CompressedCluster(rawDescriptor: old.rawDescriptor, in: geometry).hostClusters(in: geometry)
                        // Each of the two has one reference for it.
                        state.free(clusters.first >> bits..<(clusters.last >> bits) + 1, mayDiscard: mayDiscard)
                    } else if old.hostOffset != 0, new.isCompressed || new.hostOffset != old.hostOffset {
                        state.free(old.hostOffset >> bits..<(old.hostOffset >> bits) + 1, mayDiscard: mayDiscard)
                    }
                }
            }
            return
        }
    }
}
