internal import Block
internal import Synchronization

/// An L2 table in memory. Anybody may look entries up, at any time and without waiting; only `change` changes them.
final class L2Table: Sendable {
    /// Which entry of the L1 table names it.
    let l1Index: Int
    private let hasExtendedEntries: Bool
    /// One word for each entry, or two.
    private let words: AtomicWords
    /// Odd while an entry of two words is being changed.
    private let version = Atomic<UInt64>(0)
    private let retired = Atomic<Bool>(false)
    /// Set when it is looked up, cleared by the cache on its rounds.
    let wasUsed = Atomic<Bool>(true)
    /// An entry of it names what belongs to the image itself, or lies outside of the file: nothing of it is mapped.
    let isSuspect: Bool
    private let state: Mutex<State>

    private struct State {
        var hostOffset: UInt64
        /// Words that changed since they were last gathered.
        var dirty: Range<Int>?
        /// The L1 table in the image does not name it.
        var isNew: Bool
        var isBeingWritten = false
    }

    init(l1Index: Int, hostOffset: UInt64, words: [UInt64], geometry: ImageGeometry, isNew: Bool, isSuspect: Bool = false) {
        self.l1Index = l1Index
        hasExtendedEntries = geometry.hasExtendedL2
        let count = geometry.clusterByteCount / 8
        self.words = AtomicWords(words, count: count)
        self.isSuspect = isSuspect
        state = Mutex(State(hostOffset: hostOffset, dirty: isNew ? 0..<count : nil, isNew: isNew))
    }

    var byteCount: Int { words.count * 8 }
    var hostOffset: UInt64 { state.withLock { $0.hostOffset } }
    /// Not in the cache any more: what it says may be old.
    @inline(__always) var isRetired: Bool { retired.load(ordering: .sequentiallyConsistent) }

    @inline(__always) func entry(at index: Int) -> L2Entry {
        guard hasExtendedEntries else { return L2Entry(rawDescriptor: words[index]) }
        while true {
            let before = version.load(ordering: .sequentiallyConsistent)
            let entry = L2Entry(rawDescriptor: words[index * 2], subclusters: SubclusterBitmap(rawValue: words[index * 2 + 1]))
            // Changes take nanoseconds: looking again is the quickest.
            if before & 1 == 0, version.load(ordering: .sequentiallyConsistent) == before { return entry }
        }
    }

    /// What came of a change.
    enum Change { case retired, done, madeDirty }

    /// Sets entries from `index` on. `.retired`: nothing has changed, as the table is not in the cache any more.
    func change(from index: Int, to entries: [L2Entry]) -> Change {
        state.withLock { state in
            guard !isRetired else { return .retired }
            let width = hasExtendedEntries ? 2 : 1
            for (position, entry) in entries.enumerated() {
                let word = (index + position) * width
                if hasExtendedEntries {
                    version.wrappingAdd(1, ordering: .sequentiallyConsistent)
                    words.store(entry.rawDescriptor, at: word)
                    words.store(entry.subclusters.rawValue, at: word + 1)
                    version.wrappingAdd(1, ordering: .sequentiallyConsistent)
                } else {
                    words.store(entry.rawDescriptor, at: word)
                }
            }
            let changed = index * width..<(index + entries.count) * width
            guard let old = state.dirty else {
                state.dirty = changed
                return .madeDirty
            }
            state.dirty = min(old.lowerBound, changed.lowerBound)..<max(old.upperBound, changed.upperBound)
            return .done
        }
    }

    /// The table lies elsewhere from now on, where nobody refers to it yet.
    func move(to offset: UInt64) -> Change {
        state.withLock { state in
            guard !isRetired else { return .retired }
            let wasClean = state.dirty == nil
            state.hostOffset = offset
            state.dirty = 0..<words.count
            state.isNew = true
            return wasClean ? .madeDirty : .done
        }
    }
}

// MARK: - Of the cache

extension L2Table {
    /// Copies what changed; it counts as written from now on. Until `finishWriting` the table stays in memory.
    func gather() -> (piece: Refcounts.Piece, isNew: Bool)? {
        state.withLock { state in
            guard let dirty = state.dirty else { return nil }
            let isNew = state.isNew
            // Whole sectors, where the medium takes nothing else.
            let range = isNew ? 0..<words.count : dirty.lowerBound & ~63..<min((dirty.upperBound + 63) & ~63, words.count)
            state.dirty = nil
            state.isNew = false
            state.isBeingWritten = true
            let bytes = [UInt8](bigEndianWords: range.lazy.map { self.words[$0] }, count: range.count)
            return (Refcounts.Piece(offset: state.hostOffset + UInt64(range.lowerBound) * 8, bytes: bytes), isNew)
        }
    }

    func finishWriting() {
        state.withLock { $0.isBeingWritten = false }
    }

    /// Takes the table out of use if the image has all of it.
    func retire() -> Bool {
        state.withLock { state in
            guard state.dirty == nil, !state.isBeingWritten else { return false }
            retired.store(true, ordering: .sequentiallyConsistent)
            return true
        }
    }
}
