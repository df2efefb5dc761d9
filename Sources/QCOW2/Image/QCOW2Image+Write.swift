public import Block

extension QCOW2Image {
    public func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        try await beginWrite()
        defer { endWrite(ByteRange(start: offset, count: UInt64(bytes.byteCount))) }
        try await writeAll(of: bytes, at: offset)
        if options.contains(.durable) || self.options.writesThrough { try await flush() }
    }

    private func writeAll(of bytes: RawSpan, at offset: UInt64) async throws(BlockError) {
        // Also for what is written under the allocation lock: a cluster that is freed meanwhile must not become somebody else's.
        let pin = metadata.quarantine.pin()
        defer { metadata.quarantine.unpin(pin) }
        var done = 0
        while done < bytes.byteCount {
            let guest = offset + UInt64(done)
            let rest = bytes.extracting(done..<bytes.byteCount)
            var count = try await writeInPlace(at: guest, rest)
            if count == 0 { count = try await writeAllocating(at: guest, rest) }
            done += count
        }
    }

    /// Writes what the image has a cluster for, from the front; returns how many bytes that were.
    private func writeInPlace(at guest: UInt64, _ bytes: RawSpan) async throws(BlockError) -> Int {
        let run = try await run(at: guest, limit: UInt64(bytes.byteCount))
        guard case .data(let host) = run.kind, run.isCopied else {
            if run.kind == .damaged { throw await metadata.failAsCorrupt("its table says nothing sensible of the cluster at \(guest.hex)") }
            return 0
        }
        try await checkWritable(at: host, run.byteCount)
        let count = Int(run.byteCount)
        try await data.write(at: host, from: bytes.extracting(0..<count), [])
        return count
    }

    /// An entry of a stranger must not lead us over the image's own tables, or beyond its end.
    private func checkWritable(at host: UInt64, _ byteCount: UInt64) async throws(BlockError) {
        guard !hasDataFile else { return }
        guard !metadata.isReserved(host, byteCount) else {
            throw await metadata.failAsCorrupt("a cluster of the disk lies at \(host.hex), where the image has a table")
        }
        guard geometry.clusterCount(of: host + byteCount) <= geometry.clusterCount(of: data.currentByteCount) else {
            throw await metadata.failAsCorrupt("a cluster of the disk lies at \(host.hex), beyond the end of the file")
        }
    }

    /// Gives a place to the clusters that the front of `bytes` touches, as far as they are alike, and writes there. Returns how many bytes
    /// were written: 0 when others have given them a place meanwhile.
    private func writeAllocating(at guest: UInt64, _ bytes: RawSpan) async throws(BlockError) -> Int {
        try await metadata.commitIfMuchChanged()
        // Within one L2 table, and not everything at once: others want to get on, too.
        let toTableEnd = geometry.l2CoverByteCount - (guest & (geometry.l2CoverByteCount - 1))
        let count = min(UInt64(bytes.byteCount), toTableEnd, Self.allocatedByteLimit)
        guard let range = ByteRange(start: guest, count: count) else { return 0 }
        let ticket = await allocationLock.acquire(clusters(around: range))
        defer { allocationLock.release(ticket) }

        let l1Index = Int(geometry.l1Index(of: guest))
        let first = geometry.l2Index(of: guest)
        let clusterCount = Int(geometry.clusterCount(of: (guest & geometry.clusterMask) + count))
        let table = try await metadata.table(l1Index)
        let old = (0..<clusterCount).map { table?.entry(at: first + $0) ?? .unallocated }
        // Asked again, now that nobody can change it.
        let run = try await run(at: guest, limit: count)
        if case .data = run.kind, run.isCopied { return 0 }

        var plans: [ClusterPlan] = []
        for (index, entry) in old.enumerated() {
            let start = (guest & ~geometry.clusterMask) + UInt64(index) << UInt64(geometry.clusterBits)
            let touched = range.clamped(to: ByteRange(start: start, count: UInt64(geometry.clusterByteCount)) ?? range)
            let plan: ClusterPlan
            do throws(FormatError) {
                plan = try ClusterPlan(entry, clusterStart: start, touched: touched, geometry, hasDataFile: hasDataFile)
            } catch {
                throw await metadata.failAsCorrupt(error.detail)
            }
            // A cluster that keeps its place is written alone; so is whatever follows other ones.
            if index > 0, plan.place != nil { break }
            plans.append(plan)
            if plan.place != nil { break }
        }
        return try await carryOut(plans, l1Index, first, range, bytes)
    }

    private func carryOut(
        _ plans: [ClusterPlan], _ l1Index: Int, _ first: Int, _ range: ByteRange, _ bytes: RawSpan
    ) async throws(BlockError) -> Int {
        guard let plan = plans.first else { return 0 }
        if let place = plan.place {
            if !hasDataFile { try await checkWritable(at: place, UInt64(geometry.clusterByteCount)) }
            let isZero = hasDataFile && place >= data.currentByteCount
            let count = Int(plan.touched.count)
            try await fill([plan], at: place, isZero: isZero, range.prefix(plan.touched.count), bytes.extracting(0..<count))
            try await link([plan], at: place, l1Index, first)
            return count
        }
        let metadata = metadata
        let allocation = try await metadata.lock.withLock { () async throws(BlockError) in
            // The table first: if there is no room for it, no cluster is lost.
            _ = try await metadata.writableTable(l1Index)
            return try await metadata.allocate(UInt64(plans.count))
        }
        let plans = Array(plans.prefix(allocation.clusters.count))
        let host = allocation.clusters.lowerBound << UInt64(geometry.clusterBits)
        let count = plans.reduce(0) { $0 + Int($1.touched.count) }
        do throws(BlockError) {
            try await fill(plans, at: host, isZero: allocation.isZero, range.prefix(UInt64(count)), bytes.extracting(0..<count))
        } catch {
            try? await metadata.lock.withLock { () async throws(BlockError) in try await metadata.giveBack(allocation.clusters) }
            throw error
        }
        try await link(plans, at: host, l1Index, first)
        return count
    }

    private func link(_ plans: [ClusterPlan], at host: UInt64, _ l1Index: Int, _ first: Int) async throws(BlockError) {
        let entries = plans.enumerated().map { index, plan in
            L2Entry(
                clusterAt: host + UInt64(index) << UInt64(geometry.clusterBits), isCopied: true, subclusters: plan.subclusters)
        }
        let metadata = metadata
        try await metadata.lock.withLock { () async throws(BlockError) in
            try await metadata.setEntries(l1Index, from: first, to: entries, mayDiscard: false)
        }
    }

    /// Writes `bytes` into their new place, and around them what the disk held before.
    private func fill(_ plans: [ClusterPlan], at host: UInt64, isZero: Bool, _ range: ByteRange, _ bytes: RawSpan) async throws(BlockError) {
        guard let start = plans.first?.clusterStart else { return }
        let fills = plans.flatMap(\.fills)
        var needed: [(range: ByteRange, bytes: [UInt8])] = []
        for fill in fills {
            let old = try await oldBytes(fill)
            if let old { needed.append((fill, old)) } else if !isZero { needed.append((fill, [UInt8](repeating: 0, count: Int(fill.count)))) }
        }
        let before = needed.first.flatMap { $0.range.end == range.start ? $0 : nil }
        let after = needed.last.flatMap { $0.range.start == range.end ? $0 : nil }
        let edges = (before == nil ? 0 : 1) + (after == nil ? 0 : 1)
        if edges > 0, edges == needed.count, range.count <= UInt64(Self.joinedByteLimit) {
            // In one piece: the usual case of a small write.
            var joined = before?.bytes ?? []
            joined.reserveCapacity(joined.count + bytes.byteCount + (after?.bytes.count ?? 0))
            joined.append(contentsOf: bytes.bytes(at: 0, count: bytes.byteCount))
            joined.append(contentsOf: after?.bytes ?? [])
            return try await data.store(joined, at: host + ((before?.range.start ?? range.start) - start))
        }
        for (fill, old) in needed { try await data.store(old, at: host + (fill.start - start)) }
        try await data.write(at: host + (range.start - start), from: bytes, [])
    }

    /// What the disk holds now; nil: zeroes.
    private func oldBytes(_ range: ByteRange) async throws(BlockError) -> [UInt8]? {
        let inside = range.clamped(to: ByteRange(ofDevice: info.byteCount))
        guard !(try await isZero(inside)) else { return nil }
        var bytes = [UInt8](repeating: 0, count: Int(inside.count))
        try await fill(&bytes, at: inside.start)
        guard !bytes.rawBytes.isZero else { return nil }
        bytes.append(contentsOf: repeatElement(0, count: Int(range.count - inside.count)))
        return bytes
    }

    /// Whether the tables say that all of it reads as zeroes. Does not look into the file below.
    func isZero(_ range: ByteRange) async throws(BlockError) -> Bool {
        var rest = range
        while !rest.isEmpty {
            let run = try await run(at: rest.start, limit: rest.count)
            switch run.kind {
            case .zero: break
            case .unallocated where !hasBacking(rest): break
            default: return false
            }
            rest = rest.dropFirst(run.byteCount)
        }
        return true
    }

    /// Most bytes that are given a place at once.
    private static let allocatedByteLimit: UInt64 = 8 << 20
    /// Up to this length copying is cheaper than another write.
    private static let joinedByteLimit = 256 << 10
}
