import Block

/// Changes to the bitmaps that are stored in an image, each durable and whole: the old directory or the new one.
extension ImageFile {
    /// Adds an empty bitmap.
    ///
    /// - Parameter granularity: bytes for each bit, a power of two of 512 bytes to 2 GiB; nil: the cluster size, within 4 KiB … 64 KiB.
    public func addBitmap(_ name: [UInt8], granularity: UInt64? = nil, isEnabled: Bool = true) async throws(ImageError) {
        guard header.version == 3 else { throw .refused("bitmaps need compat=1.1") }
        guard (1...FormatLimits.bitmapNameByteCount).contains(name.count), !name.contains(0) else {
            throw .refused("a bitmap's name has 1 to 1023 bytes and no NUL")
        }
        let granularity = granularity ?? UInt64(min(max(clusterByteCount, 4096), 65536))
        guard granularity.nonzeroBitCount == 1, FormatLimits.bitmapGranularityBits.contains(granularity.trailingZeroBitCount) else {
            throw .refused("granularity is a power of two, 512 bytes to 2 GiB; not \(granularity)")
        }
        let bits = granularity.trailingZeroBitCount
        guard
            let count = BitmapDirectoryEntry.tableEntryCount(for: header.virtualByteCount, granularityBits: bits, in: geometry), count > 0
        else { throw .refused("the bitmap of a disk of \(header.virtualByteCount) bytes with this granularity is empty or over 512 MiB") }
        let editor = try await ImageEditor(self)
        var entries = try await bitmaps()
        guard !entries.contains(where: { $0.name == name }) else { throw .refused("there is a bitmap of this name") }
        guard entries.count < FormatLimits.bitmapCount else { throw .refused("there are \(entries.count) bitmaps: no more are possible") }
        let table = try await editor.allocate(clusterCount: geometry.clusterCount(of: UInt64(count) * 8))
        try await editor.save()
        try await writeEntries(repeatElement(0, count: Int(count)), at: table)
        entries.append(
            BitmapDirectoryEntry(
                tableOffset: table, tableEntryCount: count, flags: isEnabled ? .auto : [], granularityBits: bits, name: name))
        try await replaceBitmaps(entries, editor)
    }

    public func removeBitmap(_ name: [UInt8]) async throws(ImageError) {
        let editor = try await ImageEditor(self)
        var entries = try await bitmaps()
        guard let index = entries.firstIndex(where: { $0.name == name }) else { throw noBitmap(name) }
        let entry = entries.remove(at: index)
        let table = try await bitmapTable(entry)
        try await replaceBitmaps(entries, editor)
        try await release(entry, table, editor)
        try await editor.save()
    }

    /// Sets all bits to 0.
    public func clearBitmap(_ name: [UInt8]) async throws(ImageError) {
        try await changeBitmap(name) { (_, bits) throws(ImageError) in bits = nil }
    }

    public func setBitmap(_ name: [UInt8], isEnabled: Bool) async throws(ImageError) {
        let editor = try await ImageEditor(self)
        var entries = try await bitmaps()
        let index = try usable(name, in: entries)
        if isEnabled { entries[index].flags.insert(.auto) } else { entries[index].flags.remove(.auto) }
        try await replaceBitmaps(entries, editor)
    }

    /// Adds the bits of `source` to those of `name`, whatever their granularities; a bit stands for all that it covers.
    public func mergeBitmap(_ source: [UInt8], into name: [UInt8]) async throws(ImageError) {
        let bits = try await bitmapBits(source)
        try await mergeBitmap(bits, into: name)
    }

    /// Adds bits, perhaps of another image's bitmap, to the bitmap `name`.
    public func mergeBitmap(_ source: BitmapBits, into name: [UInt8]) async throws(ImageError) {
        guard source.virtualByteCount == header.virtualByteCount else {
            throw .refused("the bitmaps are of disks of different sizes: \(source.virtualByteCount) and \(header.virtualByteCount) bytes")
        }
        try await changeBitmap(name) { (entry, bits) throws(ImageError) in
            var merged: BitmapBits
            if let bits {
                merged = bits
            } else {
                merged = BitmapBits(virtualByteCount: header.virtualByteCount, granularityBits: entry.granularityBits)
            }
            merged.formUnion(source)
            bits = merged
        }
    }

    /// All bits of a bitmap: at most 512 MiB.
    public func bitmapBits(_ name: [UInt8]) async throws(ImageError) -> BitmapBits {
        let entries = try await bitmaps()
        let entry = entries[try usable(name, in: entries)]
        return try await bits(of: entry, try await bitmapTable(entry))
    }

    // MARK: -

    /// New data for a bitmap, and a new table. `change` gets the old bits and gives new ones; nil stands for none set.
    private func changeBitmap(
        _ name: [UInt8], _ change: (BitmapDirectoryEntry, inout BitmapBits?) throws(ImageError) -> Void
    ) async throws(ImageError) {
        let editor = try await ImageEditor(self)
        var entries = try await bitmaps()
        let index = try usable(name, in: entries)
        let old = entries[index]
        let oldTable = try await bitmapTable(old)
        var bits: BitmapBits? = try await bits(of: old, oldTable)
        try change(old, &bits)
        entries[index] = try await store(bits, old, header.virtualByteCount, editor)
        try await replaceBitmaps(entries, editor)
        try await release(old, oldTable, editor)
        try await editor.save()
    }

    /// Gives every bitmap the length that a disk of another size needs. Returns what replaced them, and what has to be released after that.
    func resizeBitmaps(to byteCount: UInt64, _ editor: ImageEditor) async throws(ImageError) -> (
        entries: [BitmapDirectoryEntry], old: [(BitmapDirectoryEntry, [BitmapTableEntry])]
    ) {
        var old: [(BitmapDirectoryEntry, [BitmapTableEntry])] = []
        var entries = try await bitmaps()
        for index in entries.indices {
            guard !entries[index].flags.contains(.inUse), entries[index].isUsable else {
                throw .refused("bitmap \"\(text(entries[index].name))\" is inconsistent or unknown and cannot be resized: remove it first")
            }
            let table = try await bitmapTable(entries[index])
            let bits = try await bits(of: entries[index], table).resized(to: byteCount)
            old.append((entries[index], table))
            entries[index] = try await store(bits, entries[index], byteCount, editor)
        }
        return (entries, old)
    }

    /// Writes bits into new clusters, and a new table. Clusters without a bit take no space.
    private func store(
        _ bits: BitmapBits?, _ entry: BitmapDirectoryEntry, _ byteCount: UInt64, _ editor: ImageEditor
    ) async throws(ImageError) -> BitmapDirectoryEntry {
        guard
            let count = BitmapDirectoryEntry.tableEntryCount(for: byteCount, granularityBits: entry.granularityBits, in: geometry),
            count > 0
        else { throw .refused("bitmap \"\(text(entry.name))\" would be empty or over 512 MiB") }
        var table: [UInt64] = []
        for index in 0..<Int(count) {
            let start = index * clusterByteCount
            let piece = bits.map { Array($0.bytes[min(start, $0.bytes.count)..<min(start + clusterByteCount, $0.bytes.count)]) } ?? []
            guard piece.contains(where: { $0 != 0 }) else {
                table.append(0)
                continue
            }
            let place = try await editor.allocate(clusterCount: 1)
            try await write(piece + [UInt8](repeating: 0, count: clusterByteCount - piece.count), at: place)
            table.append(place)
        }
        var stored = entry
        stored.tableOffset = try await editor.allocate(clusterCount: geometry.clusterCount(of: UInt64(count) * 8))
        stored.tableEntryCount = count
        try await writeEntries(table, at: stored.tableOffset)
        try await editor.save()
        return stored
    }

    /// Writes a new directory, makes the header name it, and frees the old one.
    ///
    /// - Parameter change: what else the header is to say from the same moment on.
    func replaceBitmaps(
        _ entries: [BitmapDirectoryEntry], _ editor: ImageEditor, _ change: (inout ImageHeader) -> Void = { _ in }
    ) async throws(ImageError) {
        let old = header.bitmaps
        let bytes = entries.flatMap(\.encoded)
        guard bytes.count <= FormatLimits.bitmapDirectoryByteCount else { throw .refused("the bitmap directory would be too large") }
        var place: BitmapsExtension?
        if !entries.isEmpty {
            let offset = try await editor.allocate(clusterCount: geometry.clusterCount(of: UInt64(bytes.count)))
            try await editor.save()
            try await write(bytes, at: offset)
            try await flush()
            place = BitmapsExtension(bitmapCount: UInt32(entries.count), directoryByteCount: UInt64(bytes.count), directoryOffset: offset)
        }
        // Not before: an allocation may have to write the header, with a longer refcount table.
        let position = header.extensions.firstIndex { if case .bitmaps = $0 { true } else { false } }
        if let position { header.extensions.remove(at: position) }
        header.autoclearFeatures.remove(.bitmaps)
        if let place {
            header.extensions.insert(.bitmaps(place), at: position ?? header.extensions.count)
            header.autoclearFeatures.insert(.bitmaps)
        }
        change(&header)
        try await writeHeader()
        if let old { try await editor.release(old.directoryOffset, clusterCount: geometry.clusterCount(of: old.directoryByteCount)) }
        try await editor.save()
    }

    func release(_ entry: BitmapDirectoryEntry, _ table: [BitmapTableEntry], _ editor: ImageEditor) async throws(ImageError) {
        for case .cluster(let offset) in table { try await editor.release(offset) }
        try await editor.release(entry.tableOffset, clusterCount: geometry.clusterCount(of: UInt64(entry.tableEntryCount) * 8))
    }

    private func bitmapTable(_ entry: BitmapDirectoryEntry) async throws(ImageError) -> [BitmapTableEntry] {
        let size = UInt64(entry.tableEntryCount) * 8
        guard entry.tableOffset < byteCount, size <= byteCount + UInt64(clusterByteCount) - entry.tableOffset else {
            throw .format(.corrupt("the table of bitmap \"\(text(entry.name))\" lies outside of the file"))
        }
        let raw = try await readEntries(at: entry.tableOffset, count: Int(entry.tableEntryCount))
        return try decoding { () throws(FormatError) in
            var table: [BitmapTableEntry] = []
            for value in raw { table.append(try BitmapTableEntry(rawValue: value, in: geometry)) }
            return table
        }
    }

    private func bits(of entry: BitmapDirectoryEntry, _ table: [BitmapTableEntry]) async throws(ImageError) -> BitmapBits {
        var bits = BitmapBits(virtualByteCount: header.virtualByteCount, granularityBits: entry.granularityBits)
        let needed = BitmapDirectoryEntry.tableEntryCount(
            for: header.virtualByteCount, granularityBits: entry.granularityBits, in: geometry)
        guard needed == entry.tableEntryCount else {
            throw .format(
                .corrupt("bitmap \"\(text(entry.name))\" has \(entry.tableEntryCount) table entries, not as many as the disk needs"))
        }
        for (index, piece) in table.enumerated() {
            let start = index * clusterByteCount
            let count = min(clusterByteCount, bits.bytes.count - start)
            switch piece {
            case .allZeroes: continue
            case .allOnes: bits.bytes.replaceSubrange(start..<start + count, with: repeatElement(0xff, count: count))
            case .cluster(let offset): bits.bytes.replaceSubrange(start..<start + count, with: try await read(at: offset, count: count))
            }
        }
        bits.clearTail()
        return bits
    }

    private func usable(_ name: [UInt8], in entries: [BitmapDirectoryEntry]) throws(ImageError) -> Int {
        guard let index = entries.firstIndex(where: { $0.name == name }) else { throw noBitmap(name) }
        guard !entries[index].flags.contains(.inUse) else {
            throw .refused("bitmap \"\(text(name))\" is inconsistent: it was not stored after its last use. It can only be removed")
        }
        guard entries[index].isUsable else { throw .refused("bitmap \"\(text(name))\" has extra data of unknown meaning") }
        return index
    }

    private func noBitmap(_ name: [UInt8]) -> ImageError { .refused("there is no bitmap \"\(text(name))\"") }

    private func text(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }
}
