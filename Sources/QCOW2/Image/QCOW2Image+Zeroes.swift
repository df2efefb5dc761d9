public import Block

extension QCOW2Image {
    public func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        guard !range.isEmpty else { return }
        try await beginWrite()
        var changed: ByteRange? = range
        defer { endWrite(changed) }
        do throws(BlockError) {
            try await writeZeroesUnrecorded(range, options)
        } catch {
            // A refusal to do it slowly has changed nothing (P-CMD-ZERO-2).
            if options.contains(.fast), error.kind == .unsupported { changed = nil }
            throw error
        }
    }

    private func writeZeroesUnrecorded(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        var options = options
        if !self.options.honorsDiscard { options.remove(.mayUnmap) }
        if header.hasRawDataFile {
            try await zeroThrough(range, options)
        } else {
            try await zero(range, options)
        }
        if options.contains(.durable) || self.options.writesThrough { try await flush() }
    }

    /// The data file must read the same without the image. The tables come first: a write that comes in between stays in both, or in neither.
    func zeroThrough(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        guard data.info.abilities.zeroes == .native else {
            guard !options.contains(.fast) else { throw Self.notFast() }
            return try await writeZeroBytes(range)
        }
        if let whole = wholeUnits(of: range) { try await changeClusters(whole, .zeroes(unmap: false)) }
        try await data.writeZeroes(range, options.subtracting(.durable))
    }

    /// What a table can say of a range: whole clusters or subclusters. The end of the disk ends one, too.
    private func wholeUnits(of range: ByteRange) -> ByteRange? {
        let unit = UInt64(header.version < 3 ? geometry.clusterByteCount : geometry.subclusterByteCount)
        let end = range.end == info.byteCount ? (range.end + unit - 1) & ~(unit - 1) : range.end & ~(unit - 1)
        let start = (range.start + unit - 1) & ~(unit - 1)
        return start < end ? ByteRange(start: start, count: min(end, info.byteCount) - start) : nil
    }

    private func zero(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        let whole = wholeUnits(of: range)
        if options.contains(.fast) { try await requireFast(range, whole) }
        guard let whole else { return try await zeroPart(range) }
        try await zeroPart(range.prefix(whole.start - range.start))
        try await changeClusters(whole, options.contains(.mayUnmap) ? .zeroes(unmap: true) : .zeroes(unmap: false))
        try await zeroPart(range.dropFirst(whole.end - range.start))
    }

    /// Fast is what changes tables, or nothing at all.
    private func requireFast(_ range: ByteRange, _ whole: ByteRange?) async throws(BlockError) {
        if try await isZero(range) { return }
        guard header.version >= 3, whole != nil else { throw Self.notFast() }
    }

    private func zeroPart(_ range: ByteRange) async throws(BlockError) {
        guard !range.isEmpty, !(try await isZero(range)) else { return }
        try await writeZeroBytes(range)
    }

    func writeZeroBytes(_ range: ByteRange) async throws(BlockError) {
        let zeroes = [UInt8](repeating: 0, count: Int(min(range.count, 1 << 20)))
        var rest = range
        while !rest.isEmpty {
            let piece = rest.prefix(UInt64(zeroes.count))
            try await write(at: piece.start, from: zeroes.rawBytes.extracting(0..<Int(piece.count)), [])
            rest = rest.dropFirst(piece.count)
        }
    }

    @inline(never) private static func notFast() -> BlockError {
        BlockError(.unsupported, "zeroing this range is not faster than writing zeroes to it")
    }
}

// MARK: - Clusters that lose their data

/// What becomes of clusters, or subclusters, that are wanted no more.
enum Removal: Equatable {
    /// They read as zeroes. With `unmap` their space is given up.
    case zeroes(unmap: Bool)
    /// They read as anything; their space is given up.
    case discard

    var unmaps: Bool { self != .zeroes(unmap: false) }
}

extension QCOW2Image {
    /// Changes what the tables say of whole units of `range`: subclusters for zeroes, else clusters; the end of the disk ends a unit.
    func changeClusters(_ range: ByteRange, _ removal: Removal) async throws(BlockError) {
        var rest = range
        while !rest.isEmpty {
            try await metadata.commitIfMuchChanged()
            let toTableEnd = geometry.l2CoverByteCount - (rest.start & (geometry.l2CoverByteCount - 1))
            let piece = rest.prefix(toTableEnd)
            for range in try await changeClusters(ofOneTable: piece, removal) { try await writeZeroBytes(range) }
            rest = rest.dropFirst(piece.count)
            await Task.yield()
        }
    }

    /// Returns what has to be zeroed by writing.
    private func changeClusters(ofOneTable range: ByteRange, _ removal: Removal) async throws(BlockError) -> [ByteRange] {
        let around = clusters(around: range)
        let ticket = await allocationLock.acquire(around)
        defer { allocationLock.release(ticket) }
        let l1Index = Int(geometry.l1Index(of: range.start))
        let first = geometry.l2Index(of: range.start)
        let count = Int(geometry.clusterCount(of: around.count))
        let table = try await metadata.table(l1Index)
        // Nothing here and nothing below: zeroes already.
        if table == nil, !hasBacking(around) { return [] }
        var index = 0
        var mustWrite: [ByteRange] = []
        while index < count {
            // Runs of entries that change.
            var changed: [L2Entry] = []
            let begin = index
            while index < count {
                let start = around.start + UInt64(index) << UInt64(geometry.clusterBits)
                let old = table?.entry(at: first + index) ?? .unallocated
                let outcome = try await outcome(of: old, at: start, range, removal)
                if outcome == .write { mustWrite.append(cluster(at: start).clamped(to: range)) }
                guard case .change(let entry) = outcome else { break }
                changed.append(entry)
                index += 1
            }
            if changed.isEmpty {
                index += 1
                continue
            }
            let entries = changed
            let metadata = metadata
            try await metadata.lock.withLock { () async throws(BlockError) in
                try await metadata.setEntries(l1Index, from: first + begin, to: entries, mayDiscard: removal.unmaps)
            }
        }
        if hasDataFile, removal.unmaps { try await discardData(range) }
        return mustWrite
    }

    private enum Outcome: Equatable {
        case keep
        case change(L2Entry)
        /// The tables cannot say it.
        case write
    }

    private func outcome(of old: L2Entry, at start: UInt64, _ range: ByteRange, _ removal: Removal) async throws(BlockError) -> Outcome {
        let cluster = cluster(at: start)
        let mapping: ClusterMapping
        do throws(FormatError) {
            mapping = try old.mapping(in: geometry, hasDataFile: hasDataFile)
        } catch {
            throw await metadata.failAsCorrupt(error.detail)
        }
        let hasBelow = hasBacking(cluster)
        if mapping == .unallocated, !hasBelow { return .keep }
        let isWhole = range.start <= start && range.end >= min(cluster.end, info.byteCount)
        guard isWhole else { return removal == .discard ? .keep : part(of: old, mapping, cluster, range) }
        if mapping == .zero(preallocated: nil) { return .keep }
        guard hasBelow else {
            if removal.unmaps { return .change(.unallocated) }
            return header.version >= 3 ? keepingPlace(old, mapping) : .write
        }
        // Without the flag of version 3 the file below would show through.
        guard header.version >= 3 else { return removal == .discard ? .keep : .write }
        return removal.unmaps ? .change(L2Entry(zeroesIn: geometry)) : keepingPlace(old, mapping)
    }

    /// Zeroes that keep the cluster, for later writes.
    private func keepingPlace(_ old: L2Entry, _ mapping: ClusterMapping) -> Outcome {
        guard old.isCopied, let place = mapping.hostCluster else { return .change(L2Entry(zeroesIn: geometry)) }
        if case .zero = mapping { return .keep }
        return .change(L2Entry(zeroesIn: geometry, preallocatedAt: place, isCopied: true))
    }

    /// Zeroes for some subclusters.
    private func part(of old: L2Entry, _ mapping: ClusterMapping, _ cluster: ByteRange, _ range: ByteRange) -> Outcome {
        guard geometry.hasExtendedL2, !old.isCompressed else { return .write }
        let inside = cluster.clamped(to: range)
        let size = UInt64(geometry.subclusterByteCount)
        let low = (inside.start - cluster.start) / size
        let high = (inside.end - cluster.start + size - 1) / size
        let mask =
            UInt32(truncatingIfNeeded: (1 as UInt64) << high - 1) & ~UInt32(truncatingIfNeeded: (1 as UInt64) << low - 1)
        var entry = old
        entry.subclusters = SubclusterBitmap(allocated: old.subclusters.allocated & ~mask, zero: old.subclusters.zero | mask)
        return entry == old ? .keep : .change(entry)
    }

    private func cluster(at start: UInt64) -> ByteRange {
        ByteRange(start: start, count: UInt64(geometry.clusterByteCount)) ?? ByteRange(ofDevice: 0)
    }

    /// Passed on to the external data file, whose space no refcount guards.
    func discardData(_ range: ByteRange) async throws(BlockError) {
        let inside = range.clamped(to: ByteRange(ofDevice: data.currentByteCount))
        guard !inside.isEmpty, data.info.abilities.discard != .none else { return }
        do throws(BlockError) {
            try await data.discard(inside)
        } catch where error.kind == .unsupported {}
    }
}
