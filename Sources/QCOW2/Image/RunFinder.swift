internal import Block

/// A stretch of guest bytes that all lie in the same way.
struct Run: Equatable {
    enum Kind: Equatable {
        /// Bytes of the file below, or zeroes.
        case unallocated
        case zero
        /// In the data file, from here on.
        case data(UInt64)
        /// Part of one compressed cluster.
        case compressed(CompressedCluster)
        /// The entry breaks the rules.
        case damaged
    }

    var kind: Kind
    var byteCount: UInt64
    /// Of data: nobody else uses the clusters, so they may be written in place.
    var isCopied = false
}

/// Finds out what L2 tables say. Synchronous: for mappers as well as for those who wait.
struct RunFinder: Sendable {
    let geometry: ImageGeometry
    let hasDataFile: Bool

    /// The longest run from `guest` on that the table knows of, at most `limit` bytes.
    @inline(__always) func run(in table: L2Table, at guest: UInt64, limit: UInt64) -> Run {
        var run = piece(of: table, at: guest, limit: limit)
        while run.byteCount < limit {
            let next = guest + run.byteCount
            // The next table's business.
            guard next & (geometry.l2CoverByteCount - 1) != 0 else { break }
            let piece = piece(of: table, at: next, limit: limit - run.byteCount)
            guard piece.continues(run) else { break }
            run.byteCount += piece.byteCount
        }
        return run
    }

    /// What the table says of one cluster, or of equal subclusters of it.
    @inline(__always) private func piece(of table: L2Table, at guest: UInt64, limit: UInt64) -> Run {
        let entry = table.entry(at: geometry.l2Index(of: guest))
        let intoCluster = guest & geometry.clusterMask
        let rest = min(limit, UInt64(geometry.clusterByteCount) - intoCluster)
        do throws(FormatError) {
            switch try entry.mapping(in: geometry, hasDataFile: hasDataFile) {
            case .unallocated: return Run(kind: .unallocated, byteCount: rest)
            case .zero: return Run(kind: .zero, byteCount: rest)
            case .data(let host): return data(host, guest, rest, entry)
            case .compressed(let cluster): return Run(kind: .compressed(cluster), byteCount: rest)
            case .subclusters(let host, let bitmap): return subclusters(host, bitmap, guest, rest, entry)
            }
        } catch {
            return Run(kind: .damaged, byteCount: rest)
        }
    }

    @inline(__always) private func data(_ host: UInt64, _ guest: UInt64, _ rest: UInt64, _ entry: L2Entry) -> Run {
        let intoCluster = guest & geometry.clusterMask
        // In an external data file every cluster has the place that it has on the disk.
        guard !hasDataFile || host == guest - intoCluster else { return Run(kind: .damaged, byteCount: rest) }
        return Run(kind: .data(host + intoCluster), byteCount: rest, isCopied: entry.isCopied)
    }

    private func subclusters(_ host: UInt64?, _ bitmap: SubclusterBitmap, _ guest: UInt64, _ rest: UInt64, _ entry: L2Entry) -> Run {
        let size = UInt64(geometry.subclusterByteCount)
        let first = geometry.subclusterIndex(of: guest)
        func state(_ index: Int) -> (allocated: Bool, zero: Bool) {
            (bitmap.allocated >> UInt32(index) & 1 == 1, bitmap.zero >> UInt32(index) & 1 == 1)
        }
        let wanted = state(first)
        var end = first + 1
        while end < ImageGeometry.subclusterCount, state(end) == wanted { end += 1 }
        let byteCount = min(rest, UInt64(end) * size - (guest & geometry.clusterMask))
        guard wanted.allocated else { return Run(kind: wanted.zero ? .zero : .unallocated, byteCount: byteCount) }
        guard let host else { return Run(kind: .damaged, byteCount: byteCount) }
        return data(host, guest, byteCount, entry)
    }
}

extension Run {
    /// Whether this, right behind `run`, is more of the same.
    @inline(__always) func continues(_ run: Run) -> Bool {
        switch (kind, run.kind) {
        case (.unallocated, .unallocated), (.zero, .zero): true
        case (.data(let host), .data(let before)): host == before + run.byteCount && isCopied == run.isCopied
        default: false
        }
    }
}

extension QCOW2Image {
    /// What lies at `guest`, for at most `limit` bytes. May wait for a table to be read.
    func run(at guest: UInt64, limit: UInt64) async throws(BlockError) -> Run {
        guard let table = try await metadata.table(Int(geometry.l1Index(of: guest))) else {
            let cover = geometry.l2CoverByteCount
            return Run(kind: .unallocated, byteCount: min(limit, cover - (guest & (cover - 1))))
        }
        return finder.run(in: table, at: guest, limit: limit)
    }

    @inline(never) static func damaged(_ guest: UInt64) -> BlockError {
        BlockError(.inputOutput, "the image is damaged: its table says nothing sensible of the cluster at \(guest.hex)")
    }
}
