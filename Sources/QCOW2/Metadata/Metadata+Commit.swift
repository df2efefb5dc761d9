internal import Block
internal import Synchronization

/// What one commit writes, in its order. Copied while nobody changes tables.
struct Commit: Sendable {
    var number: UInt64 = 0
    var refcounts = Refcounts.Changes()
    /// Tables that no table in the image names yet.
    var newTables: [Refcounts.Piece] = []
    /// Changes of tables and of the L1 table that the image uses.
    var entries: [Refcounts.Piece] = []
    var tables: [L2Table] = []
    var freed: [Quarantine.Freed] = []
}

/// How changes of tables come into the image.
///
///     new refcount blocks ── flush ── their entries in the refcount table          only when there are new ones
///     other refcounts, new L2 tables, and the data of requests before this ── flush
///     entries of L2 tables, entries of the L1 table ── flush
///     only then: clusters that nothing names any more lose their reference
///
/// So whatever the image names is there, is counted and has its contents; and what the image still names is not used for anything else.
/// A power cut leaves clusters that are counted and not named, at worst.
extension Metadata {
    /// Makes everything durable that has been written before this call: data, and the tables that lead to it. Calls that come together
    /// share the work.
    ///
    /// - Throws: what the files say. Then the image is not written any more; but where only room was missing, which the holes of a sparse file
    ///   may take at any time, the same is written again first of all when the next commit comes.
    func commit() async throws(BlockError) {
        let before = state.withLock { $0.commitsBegun }
        await commitLock.acquire()
        defer { commitLock.release() }
        // One that began after this call has had everything of ours.
        if state.withLock({ $0.lastCommitDone > before }) { return }
        try await commitAlone()
    }

    /// With `commitLock` held.
    private func commitAlone() async throws(BlockError) {
        try checkHealthy()
        if let unfinished = state.withLock({ $0.unfinishedCommit }) { try await carryOut(unfinished) }
        await lock.acquire()
        let commit = gather()
        lock.release()
        try await carryOut(commit)
    }

    private func carryOut(_ commit: Commit) async throws(BlockError) {
        do throws(BlockError) {
            try await write(commit)
        } catch {
            // Pieces that found no room can be written again.
            if error.kind == .noSpace, !hasFailed { state.withLock { $0.unfinishedCommit = commit } } else { fail(error) }
            throw error
        }
        for table in commit.tables { table.finishWriting() }
        state.withLock { state in
            state.unfinishedCommit = nil
            state.refcounts.finish(commit.refcounts)
            state.lastCommitDone = commit.number
        }
        quarantine.enter(commit.freed)
        try await reclaim()
    }

    private func gather() -> Commit {
        state.withLock { state in
            var commit = Commit()
            state.commitsBegun += 1
            commit.number = state.commitsBegun
            commit.refcounts = state.refcounts.gather()
            for table in state.dirtyTables {
                guard let (piece, isNew) = table.gather() else { continue }
                commit.tables.append(table)
                if isNew { commit.newTables.append(piece) } else { commit.entries.append(piece) }
            }
            state.dirtyTables = []
            for index in state.dirtyL1Entries.sorted() {
                commit.entries.append(
                    Refcounts.Piece(offset: l1TableOffset + UInt64(index) * 8, bytes: [UInt8](bigEndianWords: [l1[index]], count: 1)))
            }
            state.dirtyL1Entries = []
            commit.freed = state.freed
            state.freed = []
            state.freedClusterCount = 0
            return commit
        }
    }

    private func write(_ commit: Commit) async throws(BlockError) {
        if !commit.refcounts.isEmpty || !commit.entries.isEmpty { try await orFail(markDirty) }
        if !commit.refcounts.newBlocks.isEmpty {
            try await write(commit.refcounts.newBlocks)
            try await orFail(file.flush)
        }
        try await write(commit.refcounts.tableEntries)
        try await write(commit.refcounts.blocks)
        try await write(commit.newTables)
        if let dataFile { try await orFail(dataFile.flush) }
        try await orFail(file.flush)
        guard !commit.entries.isEmpty else { return }
        try await write(commit.entries)
        try await orFail(file.flush)
    }

    /// Does what cannot be repeated: a flush that fails has lost what it was about.
    private func orFail(_ body: () async throws(BlockError) -> Void) async throws(BlockError) {
        do throws(BlockError) {
            try await body()
        } catch {
            fail(error)
            throw error
        }
    }

    private func write(_ pieces: [Refcounts.Piece]) async throws(BlockError) {
        for piece in pieces { try await file.store(piece.bytes, at: piece.offset) }
    }

    /// Gives freed clusters back that nobody can know any more. They can be used again at once.
    func reclaim(force: Bool = false) async throws(BlockError) {
        let freed = quarantine.takeReleased(force: force)
        guard !freed.isEmpty else { return }
        try await lock.withLock { () async throws(BlockError) in
            for one in freed { try await drop(one.clusters, mayDiscard: one.mayDiscard) }
        }
    }

    /// Writes changes when they take too much memory. Called before each request that changes tables.
    func commitIfMuchChanged() async throws(BlockError) {
        let isMuch = state.withLock { state in
            state.dirtyTables.count * geometry.clusterByteCount > cache.byteCountLimit / 2
                || state.refcounts.dirtyByteCount > limits.refcountByteCount / 2
                || state.freedClusterCount > Self.freedClusterLimit || state.freed.count > 4096
        }
        if isMuch { try await commit() }
    }

    /// Most clusters that wait for a commit.
    private static let freedClusterLimit: UInt64 = 16384

    var isDirty: Bool {
        state.withLock { state in
            !state.dirtyTables.isEmpty || !state.dirtyL1Entries.isEmpty || state.refcounts.isDirty || state.lastCommitDone != state.commitsBegun
        }
    }

    /// Everything into the image, as nobody uses it any more: nothing is left that a check would find.
    func finish() async throws(BlockError) {
        try await commit()
        // What only became free by the first commit; the second brings the refcounts of that. One more for a refcount table that moved.
        for _ in 0..<3 {
            try await reclaim(force: true)
            guard isDirty || state.withLock({ !$0.freed.isEmpty }) else { break }
            try await commit()
        }
        try await trim()
        try await markClean()
    }

    /// Cuts off what the file has too much (`reach`).
    private func trim() async throws(BlockError) {
        let end = state.withLock { $0.untouchedFrom } << UInt64(geometry.clusterBits)
        if file.currentByteCount > end, file.currentByteCount > file.info.byteCount { try await file.resize(to: max(end, file.info.byteCount)) }
    }
}
