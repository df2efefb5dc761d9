public import Block

extension ImageFile {
    /// Makes the virtual disk longer, with zeroes, or shorter. A size is rounded up to a sector.
    ///
    /// What a longer backing file has behind the old end does not become visible: whoever grows an overlay zeroes that part afterwards
    /// (`QCOW2Image.writeZeroes`); see `nbd image resize`.
    ///
    /// - Parameter dataFile: the external data file, if the image has one.
    /// - Throws: `.refused` for a smaller size without `mayShrink`, for version 2 with snapshots, for raw data files.
    public func resize(
        to wanted: UInt64, mayShrink: Bool = false, dataFile: (any ResizableDevice)? = nil
    ) async throws(ImageError) {
        guard wanted <= FormatLimits.virtualByteCount - 511 else { throw .refused("a disk has at most 2^63 - 1 bytes") }
        let newByteCount = (wanted + 511) & ~511
        let old = header.virtualByteCount
        guard newByteCount != old else { return }
        guard newByteCount > old || mayShrink else {
            throw .refused("\(newByteCount) bytes are fewer than the \(old) there are: what lies behind would be lost (--shrink allows it)")
        }
        guard header.snapshotCount == 0 || header.version == 3 else {
            throw .refused("an image of version 2 with snapshots cannot be resized")
        }
        guard !header.hasRawDataFile else { throw .refused("an image with a raw data file cannot be resized") }
        guard header.hasDataFile == (dataFile != nil) else { throw .refused("the data file of the image is needed") }
        let entryCount = geometry.l1EntryCount(for: newByteCount)
        guard entryCount * 8 <= UInt64(FormatLimits.l1TableByteCount) else {
            throw .refused("\(newByteCount) bytes are too many for clusters of \(clusterByteCount) bytes")
        }
        let editor = try await ImageEditor(self)
        if newByteCount > old {
            try await grow(to: newByteCount, entryCount, editor)
            if let dataFile { try await Self.resize(dataFile, to: newByteCount) }
        } else {
            try await shrink(to: newByteCount, editor)
            if let dataFile { try await Self.resize(dataFile, to: newByteCount) }
        }
    }

    private static func resize(_ device: any ResizableDevice, to byteCount: UInt64) async throws(ImageError) {
        do throws(BlockError) { try await device.resize(to: byteCount) } catch { throw .device(error) }
    }

    private func grow(to newByteCount: UInt64, _ entryCount: UInt64, _ editor: ImageEditor) async throws(ImageError) {
        let (entries, old) = try await resizeBitmaps(to: newByteCount, editor)
        var oldTable: (offset: UInt64, clusterCount: UInt64)?
        var newTable: UInt64?
        if entryCount > UInt64(header.l1EntryCount) {
            let table = try await activeL1()
            let clusterCount = geometry.clusterCount(of: entryCount * 8)
            let offset = try await editor.allocate(clusterCount: clusterCount)
            try await editor.save()
            try await writeEntries(table, at: offset, paddedTo: Int(clusterCount) << geometry.clusterBits)
            try await flush()
            oldTable = (header.l1TableOffset, geometry.clusterCount(of: header.l1TableByteCount))
            newTable = offset
        }
        try await finish(entries, old, editor) { header in
            header.virtualByteCount = newByteCount
            guard let newTable else { return }
            header.l1TableOffset = newTable
            header.l1EntryCount = UInt32(entryCount)
        }
        if let oldTable, oldTable.clusterCount > 0 { try await editor.release(oldTable.offset, clusterCount: oldTable.clusterCount) }
        try await editor.save()
    }

    /// The new size, and the bitmaps of that size, with one write of the header.
    private func finish(
        _ entries: [BitmapDirectoryEntry], _ old: [(BitmapDirectoryEntry, [BitmapTableEntry])], _ editor: ImageEditor,
        _ change: (inout ImageHeader) -> Void
    ) async throws(ImageError) {
        if old.isEmpty {
            change(&header)
            try await writeHeader()
        } else {
            try await replaceBitmaps(entries, editor, change)
            for (entry, table) in old { try await release(entry, table, editor) }
        }
    }

    private func activeL1() async throws(ImageError) -> [UInt64] {
        guard header.l1TableByteCount <= byteCount, header.l1TableOffset <= byteCount else {
            throw .format(.corrupt("the L1 table lies outside of the file"))
        }
        return try await readEntries(at: header.l1TableOffset, count: Int(header.l1EntryCount))
    }

    /// Shorter first in the header; then the entries behind the end go, and what they referred to. The L1 table keeps its length.
    private func shrink(to newByteCount: UInt64, _ editor: ImageEditor) async throws(ImageError) {
        let (entries, old) = try await resizeBitmaps(to: newByteCount, editor)
        var table = try await activeL1()
        try await finish(entries, old, editor) { header in header.virtualByteCount = newByteCount }
        let keep = geometry.clusterCount(of: newByteCount)
        let perTable = UInt64(geometry.l2EntryCount)
        for index in table.indices where L1Entry(rawValue: table[index]).isAllocated && UInt64(index + 1) * perTable > keep {
            let entry = L1Entry(rawValue: table[index])
            guard let place = try decoding({ () throws(FormatError) in try entry.table(in: geometry) }) else { continue }
            let first = Int(max(keep, UInt64(index) * perTable) - UInt64(index) * perTable)
            // A table that a snapshot uses, too, is not changed; only a whole one can be let go.
            guard entry.isCopied || first == 0 else { continue }
            try await cut(place, from: first, position: index, &table, editor)
        }
        try await editor.save()
        try await editor.trimFile()
    }

    private func cut(
        _ place: UInt64, from first: Int, position: Int, _ table: inout [UInt64], _ editor: ImageEditor
    ) async throws(ImageError) {
        var bytes = try await read(at: place, count: clusterByteCount)
        var gone: [L2Entry] = []
        for index in first..<geometry.l2EntryCount { gone.append(L2Entry(decoding: bytes.rawBytes, at: index, in: geometry)) }
        if first == 0 {
            table[position] = 0
            try await writeEntry(0, at: header.l1TableOffset + UInt64(position) * 8)
        } else {
            bytes.replaceSubrange(
                first * geometry.l2EntryByteCount..<bytes.count,
                with: repeatElement(0, count: bytes.count - first * geometry.l2EntryByteCount))
            try await write(bytes, at: place)
        }
        try await flush()
        for entry in gone { try await release(entry, editor) }
        if first == 0 { try await editor.release(place) }
    }

    /// Lets go of what an L2 entry refers to.
    private func release(_ entry: L2Entry, _ editor: ImageEditor) async throws(ImageError) {
        guard entry != .unallocated else { return }
        let mapping = try decoding { () throws(FormatError) in try entry.mapping(in: geometry, hasDataFile: header.hasDataFile) }
        if case .compressed(let cluster) = mapping {
            let (first, last) = cluster.hostClusters(in: geometry)
            try await editor.release(first, clusterCount: (last - first) >> UInt64(geometry.clusterBits) + 1)
        } else if !header.hasDataFile, let offset = mapping.hostCluster {
            try await editor.release(offset)
        }
    }
}
