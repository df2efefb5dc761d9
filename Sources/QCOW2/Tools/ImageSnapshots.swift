import Block

/// Internal snapshots: each keeps the L1 table of its moment, and a reference more to all that this reaches.
extension ImageFile {
    /// Keeps the disk as it is now under a name.
    ///
    /// - Parameter time: since the Epoch.
    /// - Returns: the id of the snapshot, the smallest number that is free above all others.
    @discardableResult
    public func createSnapshot(_ name: [UInt8], time: (seconds: UInt32, nanoseconds: UInt32)) async throws(ImageError) -> [UInt8] {
        guard !header.hasDataFile else { throw .refused("an image with an external data file has no snapshots") }
        guard name.count <= 255 else { throw .refused("a snapshot's name has at most 255 bytes") }
        let editor = try await ImageEditor(self)
        var entries = try await snapshots()
        guard entries.count < FormatLimits.snapshotCount else {
            throw .refused("there are \(entries.count) snapshots: no more are possible")
        }
        let highest = entries.compactMap { UInt64(String(decoding: $0.id, as: UTF8.self)) }.max() ?? 0
        let id = Array(String(highest == .max ? 1 : highest + 1).utf8)
        let l1 = try await loadL1(header.l1TableOffset, header.l1EntryCount)
        let place = l1.isEmpty ? 0 : try await editor.allocate(clusterCount: geometry.clusterCount(of: UInt64(l1.count) * 8))
        // More references first: a power cut in between loses space, not data.
        try await changeReferences(below: l1, by: .more, editor)
        try await editor.save()
        let cleared = try await clearCopiedFlags(l1)
        try await writeEntries(cleared, at: place)
        try await flush()
        entries.append(
            SnapshotEntry(
                l1TableOffset: place, l1EntryCount: UInt32(l1.count), id: id, name: name, seconds: time.seconds,
                nanoseconds: time.nanoseconds, virtualByteCount: header.virtualByteCount, instructionCount: 0))
        try await replaceSnapshots(entries, editor)
        return id
    }

    /// Forgets a snapshot: the first of that name.
    ///
    /// Ids are not asked: a name may look like another snapshot's id, and what is deleted does not come back. `qemu-img` does the same.
    public func deleteSnapshot(named name: [UInt8]) async throws(ImageError) {
        let editor = try await ImageEditor(self)
        var entries = try await snapshots()
        guard let index = entries.firstIndex(where: { $0.name == name }) else { throw noSnapshot(name) }
        let entry = entries.remove(at: index)
        let l1 = try await loadL1(entry.l1TableOffset, entry.l1EntryCount)
        try await replaceSnapshots(entries, editor)
        try await changeReferences(below: l1, by: .fewer, editor)
        if !l1.isEmpty {
            try await editor.release(entry.l1TableOffset, clusterCount: geometry.clusterCount(of: UInt64(l1.count) * 8))
        }
        try await editor.save()
        try await restoreCopiedFlags()
    }

    /// Makes the disk what it was when the snapshot was taken; what has changed since is lost.
    ///
    /// - Parameter idOrName: an id, or else the first that has this name.
    /// - Throws: `.refused` also while the image has bitmaps, enabled or not: all of the disk may change, and none of them would say so.
    public func applySnapshot(_ idOrName: [UInt8]) async throws(ImageError) {
        let editor = try await ImageEditor(self)
        let entries = try await snapshots()
        let found = entries.first { $0.id == idOrName } ?? entries.first { $0.name == idOrName }
        guard let entry = found else { throw noSnapshot(idOrName) }
        if let bitmap = try await bitmaps().first {
            let name = String(decoding: bitmap.name, as: UTF8.self)
            throw .refused("the bitmap \"\(name)\" would not know what has changed: remove the image's bitmaps first")
        }
        let size = entry.virtualByteCount ?? header.virtualByteCount
        guard size == header.virtualByteCount else {
            throw .refused("the snapshot is of a disk of \(size) bytes: resize the image to that first")
        }
        let kept = try await loadL1(entry.l1TableOffset, entry.l1EntryCount)
        let current = try await loadL1(header.l1TableOffset, header.l1EntryCount)
        let count = max(UInt64(kept.count), geometry.l1EntryCount(for: size))
        let table = kept + [UInt64](repeating: 0, count: Int(count) - kept.count)
        let place = try await editor.allocate(clusterCount: geometry.clusterCount(of: count * 8))
        try await changeReferences(below: kept, by: .more, editor)
        try await editor.save()
        try await writeEntries(table, at: place)
        try await flush()
        let (oldOffset, oldClusters) = (header.l1TableOffset, geometry.clusterCount(of: header.l1TableByteCount))
        header.l1TableOffset = place
        header.l1EntryCount = UInt32(count)
        try await writeHeader()
        try await changeReferences(below: current, by: .fewer, editor)
        if oldClusters > 0 { try await editor.release(oldOffset, clusterCount: oldClusters) }
        try await editor.save()
        try await restoreCopiedFlags()
    }

    // MARK: -

    private enum Change { case more, fewer }

    private func noSnapshot(_ name: [UInt8]) -> ImageError {
        .refused("there is no snapshot \"\(String(decoding: name, as: UTF8.self))\"")
    }

    private func loadL1(_ offset: UInt64, _ count: UInt32) async throws(ImageError) -> [UInt64] {
        guard UInt64(count) * 8 <= byteCount, offset <= byteCount else { throw .format(.corrupt("an L1 table lies outside of the file")) }
        return try await readEntries(at: offset, count: Int(count))
    }

    private func changeReferences(below l1: [UInt64], by change: Change, _ editor: ImageEditor) async throws(ImageError) {
        func apply(_ offset: UInt64, _ count: UInt64 = 1) async throws(ImageError) {
            switch change {
            case .more: try await editor.retain(offset, clusterCount: count)
            case .fewer: try await editor.release(offset, clusterCount: count)
            }
        }
        for raw in l1 {
            guard let table = try decoding({ () throws(FormatError) in try L1Entry(rawValue: raw).table(in: geometry) }) else { continue }
            let bytes = try await read(at: table, count: clusterByteCount)
            for index in 0..<geometry.l2EntryCount {
                let entry = L2Entry(decoding: bytes.rawBytes, at: index, in: geometry)
                guard entry != .unallocated else { continue }
                let mapping = try decoding { () throws(FormatError) in try entry.mapping(in: geometry, hasDataFile: false) }
                if case .compressed(let cluster) = mapping {
                    let (first, last) = cluster.hostClusters(in: geometry)
                    try await apply(first, (last - first) >> UInt64(geometry.clusterBits) + 1)
                } else if let offset = mapping.hostCluster {
                    try await apply(offset)
                }
            }
            try await apply(table)
        }
    }

    /// Nothing below the active L1 table may be written in place any more. Gives the table as it is then.
    private func clearCopiedFlags(_ l1: [UInt64]) async throws(ImageError) -> [UInt64] {
        for raw in l1 {
            guard let table = try decoding({ () throws(FormatError) in try L1Entry(rawValue: raw).table(in: geometry) }) else { continue }
            var bytes = try await read(at: table, count: clusterByteCount)
            var isChanged = false
            for index in 0..<geometry.l2EntryCount {
                let position = index * geometry.l2EntryByteCount
                // Bit 63, in the first byte of a big-endian number.
                guard bytes[position] & 0x80 != 0 else { continue }
                bytes[position] &= 0x7f
                isChanged = true
            }
            if isChanged { try await write(bytes, at: table) }
        }
        let cleared = l1.map { $0 & ~EntryFlags.copied }
        try await writeEntries(cleared, at: header.l1TableOffset)
        try await flush()
        return cleared
    }

    /// What has one reference again may be written in place again.
    private func restoreCopiedFlags() async throws(ImageError) {
        let report = try await check(repair: .all)
        guard report.errorCount == 0, report.corruptionCount == 0 else {
            throw .refused("the image is damaged: see nbd image check")
        }
    }

    /// Writes a new snapshot table, makes the header name it, and frees the old one.
    private func replaceSnapshots(_ entries: [SnapshotEntry], _ editor: ImageEditor) async throws(ImageError) {
        let (oldOffset, oldByteCount) = (header.snapshotTableOffset, try await snapshotTable().byteCount)
        let bytes = entries.flatMap(\.encoded)
        guard bytes.count <= FormatLimits.snapshotTableByteCount else { throw .refused("the snapshot table would be too large") }
        var place: UInt64 = 0
        if !entries.isEmpty {
            place = try await editor.allocate(clusterCount: geometry.clusterCount(of: UInt64(bytes.count)))
            try await editor.save()
            try await write(bytes, at: place)
            try await flush()
        }
        // Not before: an allocation may have to write the header, with a longer refcount table.
        header.snapshotTableOffset = place
        header.snapshotCount = UInt32(entries.count)
        try await writeHeader()
        if oldByteCount > 0 { try await editor.release(oldOffset, clusterCount: geometry.clusterCount(of: UInt64(oldByteCount))) }
        try await editor.save()
    }
}
