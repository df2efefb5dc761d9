internal import Synchronization

/// Lets one holder at a time into overlapping ranges, in the order they came; ranges that do not meet never wait for each other.
public final class RangeLock: Sendable {
    /// What a holder gives back.
    public struct Ticket: Sendable {
        fileprivate let id: UInt64
    }

    private struct Entry {
        let id: UInt64
        let range: ByteRange
        /// Present while the entry waits.
        var waiter: CheckedContinuation<Void, Never>?
    }

    private struct State {
        /// In order of arrival. An entry waits as long as an earlier one overlaps it.
        var entries: [Entry] = []
        var nextID: UInt64 = 0
    }

    private let state = Mutex(State())

    public init() {}

    /// Returns when nobody who came earlier holds or awaits a part of `range`. Every ticket must come back.
    public func acquire(_ range: ByteRange) async -> Ticket {
        let (id, isFree) = state.withLock { state in
            let id = state.nextID
            state.nextID += 1
            let isFree = !state.entries.contains { $0.range.overlaps(range) }
            if isFree { state.entries.append(Entry(id: id, range: range, waiter: nil)) }
            return (id, isFree)
        }
        if isFree { return Ticket(id: id) }
        await withCheckedContinuation { continuation in
            let isFree = state.withLock { state in
                // Looked at again: the holder may have gone in between.
                let isFree = !state.entries.contains { $0.range.overlaps(range) }
                state.entries.append(Entry(id: id, range: range, waiter: isFree ? nil : continuation))
                return isFree
            }
            if isFree { continuation.resume() }
        }
        return Ticket(id: id)
    }

    public func release(_ ticket: Ticket) {
        let admitted = state.withLock { state -> [CheckedContinuation<Void, Never>] in
            guard let index = state.entries.firstIndex(where: { $0.id == ticket.id }) else {
                preconditionFailure("a ticket came back twice")
            }
            let range = state.entries.remove(at: index).range
            var admitted: [CheckedContinuation<Void, Never>] = []
            for later in index..<state.entries.endIndex {
                let entry = state.entries[later]
                guard let waiter = entry.waiter, entry.range.overlaps(range),
                    !state.entries[..<later].contains(where: { $0.range.overlaps(entry.range) })
                else { continue }
                state.entries[later].waiter = nil
                admitted.append(waiter)
            }
            return admitted
        }
        for waiter in admitted { waiter.resume() }
    }
}
