internal import Synchronization

/// The L2 tables in memory, by the L1 entry that names them, and at most so many bytes of them as far as the image has their contents.
final class L2Cache: Sendable {
    fileprivate struct State {
        var tables: [Int: L2Table] = [:]
        /// Where the next round begins: tables in the order they came.
        var order: [L2Table] = []
        var hand = 0
        /// Counts evictions: who loads a table must see none in the meantime, or what he has read may be old.
        var evictionCount: UInt64 = 0
    }

    let byteCountLimit: Int
    private let tableByteCount: Int
    private let state = Mutex(State())

    init(byteCountLimit: Int, geometry: ImageGeometry) {
        tableByteCount = geometry.clusterByteCount
        // Two at least: a request that goes from one to the next.
        self.byteCountLimit = max(byteCountLimit, 2 * tableByteCount)
    }

    func table(_ l1Index: Int) -> L2Table? {
        let table = state.withLock { $0.tables[l1Index] }
        table?.wasUsed.store(true, ordering: .relaxed)
        return table
    }

    var evictionCount: UInt64 { state.withLock { $0.evictionCount } }
    var byteCount: Int { state.withLock { $0.tables.count } * tableByteCount }

    /// Adds a table whose contents were read when `evictionCount` was this. Returns the one that is there then; nil: read it again.
    func insert(_ table: L2Table, readAt evictionCount: UInt64) -> L2Table? {
        state.withLock { state -> L2Table? in
            if let other = state.tables[table.l1Index] { return other }
            guard state.evictionCount == evictionCount else { return nil }
            state.insert(table)
            state.evict(until: byteCountLimit / tableByteCount)
            return table
        }
    }

    /// Adds a table that the image does not have.
    func insert(new table: L2Table) {
        state.withLock { state in
            precondition(state.tables[table.l1Index] == nil)
            state.insert(table)
            state.evict(until: byteCountLimit / tableByteCount)
        }
    }
}

extension L2Cache.State {
    mutating func insert(_ table: L2Table) {
        tables[table.l1Index] = table
        order.append(table)
    }

    /// Goes round: a table that was used since the last time is let off once; one that the image does not have stays.
    mutating func evict(until count: Int) {
        var steps = 2 * order.count
        while order.count > count, steps > 0 {
            steps -= 1
            if hand >= order.count { hand = 0 }
            let table = order[hand]
            // Not the one that just came.
            guard hand != order.count - 1, !table.wasUsed.exchange(false, ordering: .relaxed), table.retire() else {
                hand += 1
                continue
            }
            tables[table.l1Index] = nil
            order.remove(at: hand)
            evictionCount += 1
        }
    }
}
