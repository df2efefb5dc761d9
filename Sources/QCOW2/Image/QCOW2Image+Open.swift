public import Block

extension ImageHeader {
    /// Reads the header of the image in `file`, and refuses what cannot be read here.
    ///
    /// - Throws: what the file says; `.invalid`, `.unsupported` or `.inputOutput` with words for people.
    public static func read(from file: any BlockDevice) async throws(BlockError) -> ImageHeader {
        let size = (file as? any ResizableDevice)?.currentByteCount ?? file.info.byteCount
        let probe = try await file.bytes(at: 0, count: Int(min(size, UInt64(probeByteCount))))
        do throws(FormatError) {
            let wanted = try byteCountToRead(probe.rawBytes)
            let front = try await Self.front(of: file, count: Int(min(size, UInt64(wanted)))).get()
            let header = try ImageHeader(decoding: front.rawBytes)
            try header.requireReadable()
            return header
        } catch {
            throw BlockError(error)
        }
    }

    private static func front(of file: any BlockDevice, count: Int) async -> Result<[UInt8], FormatError> {
        do throws(BlockError) {
            return .success(try await file.bytes(at: 0, count: count))
        } catch {
            return .failure(FormatError(.corrupt, error.detail))
        }
    }

    /// The table of the internal snapshots.
    public func readSnapshots(from file: any BlockDevice) async throws(BlockError) -> [SnapshotEntry] {
        guard snapshotCount > 0 else { return [] }
        let size = (file as? any ResizableDevice)?.currentByteCount ?? file.info.byteCount
        guard snapshotTableOffset < size else { throw BlockError(.inputOutput, "the snapshot table lies beyond the end of the file") }
        // Its length is only known from its contents: twice as much each time, as far as it may go.
        var byteCount: UInt64 = 64 << 10
        while true {
            let available = min(byteCount, size - snapshotTableOffset, UInt64(FormatLimits.snapshotTableByteCount))
            let bytes = try await file.bytes(at: snapshotTableOffset, count: Int(available))
            do throws(FormatError) {
                return try SnapshotEntry.decodeTable(bytes.rawBytes, count: Int(snapshotCount), in: geometry).entries
            } catch {
                guard available == byteCount else { throw BlockError(error) }
                byteCount *= 2
            }
        }
    }
}

/// What an opening has read.
struct OpenedTables {
    var header: ImageHeader
    var virtualByteCount: UInt64
    var l1TableOffset: UInt64
    var l1Words: [UInt64]
    var refcounts: Refcounts
    var reserved = ClusterSet()
}

extension QCOW2Image {
    /// Opens an image whose header was read before.
    ///
    /// - Parameters:
    ///   - file: becomes the image's, also when this fails: then it is closed. The same goes for the other two.
    ///   - backing: what shows through where the image has nothing: the file that the header names, or another one. Only read.
    ///   - dataFile: likewise, if the header wants one.
    /// - Throws: `.inputOutput`, `.unsupported` or `.invalid`, with words for people.
    public static func open(
        _ header: ImageHeader, on file: any ResizableDevice, backing: (any BlockDevice)? = nil,
        dataFile: (any ResizableDevice)? = nil, _ options: Options = Options()
    ) async throws(BlockError) -> QCOW2Image {
        do throws(BlockError) {
            return try await opened(header, file, backing, dataFile, options)
        } catch {
            await file.close()
            await backing?.close()
            await dataFile?.close()
            throw error
        }
    }

    private static func opened(
        _ header: ImageHeader, _ file: any ResizableDevice, _ backing: (any BlockDevice)?, _ dataFile: (any ResizableDevice)?,
        _ options: Options
    ) async throws(BlockError) -> QCOW2Image {
        var header = header
        try check(header, file, backing, dataFile, options)
        if !options.isReadOnly, header.incompatibleFeatures.contains(.dirty) { header = try await repaired(file) }
        var tables = try await readTables(header, file, options)
        if !options.isReadOnly { try await readForWriting(&tables, file) }
        let metadata = Metadata(
            header: tables.header, file: file, dataFile: dataFile, isReadOnly: options.isReadOnly, l1Words: tables.l1Words,
            l1TableOffset: tables.l1TableOffset, refcounts: tables.refcounts, reserved: tables.reserved, limits: options.limits)
        // Bitmaps tell of the current state, not of a snapshot.
        let bitmaps =
            options.snapshot == nil ? try await BitmapStore.open(metadata, header, virtualByteCount: tables.virtualByteCount, report: options.report) : nil
        if !options.isReadOnly { try await metadata.clearAutoclearFeatures(keeping: bitmaps == nil ? .rawExternalData : .known) }
        let image = QCOW2Image(
            tables, metadata: metadata, backing: backing, data: dataFile ?? file, bitmapStore: bitmaps, options: options)
        return image
    }

    private static func check(
        _ header: ImageHeader, _ file: any ResizableDevice, _ backing: (any BlockDevice)?, _ dataFile: (any ResizableDevice)?,
        _ options: Options
    ) throws(BlockError) {
        do throws(FormatError) {
            try header.requireReadable()
        } catch {
            throw BlockError(error)
        }
        guard file.info.blockSize.minimum == 1, (dataFile?.info.blockSize.minimum ?? 1) == 1 else {
            throw BlockError(.invalid, "a qcow2 image needs a file that can be read and written byte by byte")
        }
        guard header.hasDataFile == (dataFile != nil) else {
            throw BlockError(.invalid, header.hasDataFile ? "the image needs its external data file" : "the image has no external data file")
        }
        guard backing == nil || !header.hasRawDataFile else {
            throw BlockError(.invalid, "the image is damaged: a raw external data file and a backing file exclude each other")
        }
        guard !options.isReadOnly else { return }
        guard options.snapshot == nil else { throw BlockError(.invalid, "an internal snapshot can only be opened read-only") }
        guard !header.incompatibleFeatures.contains(.corrupt) else {
            throw BlockError(
                .readOnly, "the image is marked as damaged: it can be opened read-only, or after a repair (nbd image check --repair all)")
        }
    }

    /// An image with lazy refcounts that was not closed: they are counted anew, as QEMU does it at this point.
    private static func repaired(_ file: any ResizableDevice) async throws(BlockError) -> ImageHeader {
        let reason: String
        do throws(ImageError) {
            let image = try await ImageFile.open(file)
            let report = try await image.check(repair: .all)
            if report.errorCount == 0, report.corruptionCount == 0, !image.header.incompatibleFeatures.contains(.dirty) { return image.header }
            reason = "\(report.corruptionCount + report.errorCount) errors are left"
        } catch {
            reason = error.description
        }
        throw BlockError(
            .readOnly,
            "the image was not closed, and repairing its refcounts has failed (\(reason)): it can be opened read-only")
    }

    private static func readTables(_ header: ImageHeader, _ file: any ResizableDevice, _ options: Options) async throws(BlockError) -> OpenedTables {
        let none = Refcounts(geometry: header.geometry, tableOffset: 0, tableClusterCount: 0, table: [])
        var tables = OpenedTables(
            header: header, virtualByteCount: header.virtualByteCount, l1TableOffset: header.l1TableOffset, l1Words: [], refcounts: none)
        var count = header.l1EntryCount
        if let wanted = options.snapshot {
            guard let snapshot = wanted.find(in: try await header.readSnapshots(from: file)) else {
                throw BlockError(.invalid, "the image has no internal snapshot with \(wanted)")
            }
            tables.l1TableOffset = snapshot.l1TableOffset
            tables.virtualByteCount = snapshot.virtualByteCount ?? header.virtualByteCount
            count = snapshot.l1EntryCount
            guard tables.virtualByteCount <= FormatLimits.virtualByteCount,
                header.geometry.l1EntryCount(for: tables.virtualByteCount) <= UInt64(count)
            else { throw BlockError(.inputOutput, "the image is damaged: the L1 table of the snapshot is too small for its disk") }
        }
        let byteCount = UInt64(count) * 8
        guard ByteRange(start: tables.l1TableOffset, count: byteCount, within: file.currentByteCount) != nil else {
            throw BlockError(.inputOutput, "the image is damaged: the L1 table at \(tables.l1TableOffset.hex) goes beyond the end of the file")
        }
        tables.l1Words = try await file.bytes(at: tables.l1TableOffset, count: Int(byteCount)).bigEndianWords
        return tables
    }

    /// The refcount table, and a map of everything that must not be used for data.
    private static func readForWriting(_ tables: inout OpenedTables, _ file: any ResizableDevice) async throws(BlockError) {
        let header = tables.header
        let geometry = header.geometry
        let size = file.currentByteCount
        let byteCount = header.refcountTableByteCount
        guard byteCount > 0, ByteRange(start: header.refcountTableOffset, count: byteCount, within: size) != nil else {
            throw BlockError(.inputOutput, "the image is damaged: it has no refcount table, or one beyond the end of the file")
        }
        let words = try await file.bytes(at: header.refcountTableOffset, count: Int(byteCount)).bigEndianWords
        var map = ReservedMap(geometry: geometry, fileByteCount: size)
        do throws(FormatError) {
            try map.add(0, UInt64(geometry.clusterByteCount), "header")
            try map.add(header.l1TableOffset, header.l1TableByteCount, "L1 table")
            try map.add(header.refcountTableOffset, byteCount, "refcount table")
            var blocks: [UInt64] = []
            for word in words {
                let block = try RefcountTableEntry(rawValue: word).block(in: geometry)
                blocks.append(block ?? 0)
                if let block { try map.add(block, UInt64(geometry.clusterByteCount), "refcount block") }
            }
            tables.refcounts = Refcounts(
                geometry: geometry, tableOffset: header.refcountTableOffset, tableClusterCount: UInt64(header.refcountTableClusterCount),
                table: blocks)
            for word in tables.l1Words {
                let entry = L1Entry(rawValue: word)
                guard let table = try entry.table(in: geometry) else { continue }
                // Two entries may share a table until one is changed; a snapshot's tables are not ours to check.
                if entry.isCopied { try map.add(table, UInt64(geometry.clusterByteCount), "L2 table") } else { map.addShared(table) }
            }
        } catch {
            throw BlockError(.inputOutput, "the image is damaged and cannot be written: \(error.detail)")
        }
        let snapshots = try await header.readSnapshots(from: file)
        do throws(FormatError) {
            if header.snapshotCount > 0 {
                let length = snapshots.reduce(0) { $0 + UInt64($1.encoded.count) }
                try map.add(header.snapshotTableOffset, length, "snapshot table")
            }
            for snapshot in snapshots {
                try map.add(snapshot.l1TableOffset, UInt64(snapshot.l1EntryCount) * 8, "L1 table of a snapshot")
            }
            if let bitmaps = header.bitmaps { try map.add(bitmaps.directoryOffset, bitmaps.directoryByteCount, "bitmap directory") }
        } catch {
            throw BlockError(.inputOutput, "the image is damaged and cannot be written: \(error.detail)")
        }
        tables.reserved = map.clusters
    }
}

/// Collects the clusters of tables, which must not meet.
private struct ReservedMap {
    let geometry: ImageGeometry
    let fileByteCount: UInt64
    var clusters = ClusterSet()

    mutating func add(_ offset: UInt64, _ byteCount: UInt64, _ what: String) throws(FormatError) {
        guard byteCount > 0 else { return }
        guard ByteRange(start: offset, count: byteCount) != nil, geometry.clusterCount(of: offset + byteCount) <= geometry.clusterCount(of: fileByteCount)
        else { throw FormatError(.corrupt, "the \(what) at \(offset.hex) goes beyond the end of the file") }
        let first = offset >> UInt64(geometry.clusterBits)
        for cluster in first..<geometry.clusterCount(of: offset + byteCount) {
            guard clusters.insert(cluster) else {
                throw FormatError(.corrupt, "the \(what) at \(offset.hex) overlaps another table")
            }
        }
    }

    mutating func addShared(_ offset: UInt64) {
        guard offset < fileByteCount else { return }
        clusters.insert(offset >> UInt64(geometry.clusterBits))
    }
}
