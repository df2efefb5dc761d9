public import Block

extension ImageFile {
    /// Makes `device` an image of a disk of `virtualByteCount` bytes, rounded up to a sector. What was there is lost.
    ///
    ///     header · refcount table · refcount blocks · L1 table [· L2 tables · data]
    ///
    /// The header comes last, so a file that was not finished is no image.
    ///
    /// - Parameter dataFile: the external data file, if `options` name one: emptied, and made as long as the disk. A raw one is always
    ///   mapped.
    /// - Throws: `.refused` for options that contradict each other or do not fit the size.
    @discardableResult
    public static func create(
        _ device: any ResizableDevice, virtualByteCount: UInt64, _ options: ImageOptions = ImageOptions(),
        dataFile: (any ResizableDevice)? = nil
    ) async throws(ImageError) -> ImageFile {
        guard virtualByteCount <= FormatLimits.virtualByteCount - 511 else { throw .refused("a disk has at most 2^63 - 1 bytes") }
        let header = try options.header(virtualByteCount: (virtualByteCount + 511) & ~511)
        guard (options.dataFile == nil) == (dataFile == nil) else {
            throw .refused("a data file that is named has to be given, and only then")
        }
        let image = ImageFile(device: device, header: header)
        let layout = try ImageLayout(header, options)
        image.header.refcountTableOffset = layout.offset(of: 1)
        image.header.refcountTableClusterCount = UInt32(layout.refcountTableClusterCount)
        image.header.l1TableOffset = header.l1EntryCount == 0 ? 0 : layout.offset(of: layout.l1Cluster)
        try await image.resize(to: 0)
        let isStale = device.currentByteCount > 0
        try await image.writeRefcounts(layout)
        try await image.writeMapping(layout)
        try await image.preallocate(layout, options, dataFile, isStale: isStale)
        try await image.flush()
        try await image.writeHeader()
        return image
    }

    /// Makes `device` a raw image: zeroes, and nothing else.
    public static func createRaw(
        _ device: any ResizableDevice, virtualByteCount: UInt64, _ preallocation: ImageOptions.Preallocation
    ) async throws(ImageError) {
        guard virtualByteCount <= FormatLimits.virtualByteCount - 511 else { throw .refused("a disk has at most 2^63 - 1 bytes") }
        let byteCount = (virtualByteCount + 511) & ~511
        do throws(BlockError) {
            let isStale = try await empty(device, to: byteCount)
            try await reserve(ByteRange(ofDevice: byteCount), of: device, isStale: isStale, preallocation)
        } catch {
            throw .device(error)
        }
    }

    private func writeRefcounts(_ layout: ImageLayout) async throws(ImageError) {
        let table = (0..<layout.refcountBlockCount).map { layout.offset(of: 1 + layout.refcountTableClusterCount + $0) }
        try await writeEntries(
            table, at: layout.offset(of: 1), paddedTo: Int(layout.refcountTableClusterCount) << geometry.clusterBits)
        let entryCount = UInt64(geometry.refcountBlockEntryCount)
        let width = geometry.refcountWidth
        for (index, offset) in table.enumerated() {
            var block = [UInt8](repeating: 0, count: clusterByteCount)
            let used = min(entryCount, layout.clusterCount - UInt64(index) * entryCount)
            var span = block.mutableSpan
            // SAFETY: any bit pattern is a byte.
            var bytes = unsafe span.mutableBytes
            for entry in 0..<Int(used) { width.setRefcount(1, at: entry, in: &bytes) }
            try await write(block, at: offset)
        }
    }

    /// The L1 table, and with preallocation the L2 tables.
    private func writeMapping(_ layout: ImageLayout) async throws(ImageError) {
        guard header.l1EntryCount > 0 else { return }
        let tables = (0..<UInt64(header.l1EntryCount)).map { index in
            index < layout.l2TableCount ? L1Entry(tableOffset: layout.offset(of: layout.l2Cluster + index), isCopied: true).rawValue : 0
        }
        try await writeEntries(
            tables, at: header.l1TableOffset, paddedTo: Int(layout.l1EndCluster - layout.l1Cluster) << geometry.clusterBits)
        let entryCount = UInt64(geometry.l2EntryCount)
        for index in 0..<layout.l2TableCount {
            var table = [UInt8](repeating: 0, count: clusterByteCount)
            let first = index * entryCount
            var span = table.mutableSpan
            // SAFETY: any bit pattern is a byte.
            var bytes = unsafe span.mutableBytes
            for entry in 0..<min(entryCount, layout.mappedClusterCount - first) {
                let offset = layout.offset(of: layout.dataCluster + first + entry)
                // Extended entries have no subclusters yet: unread space, and what a backing file has shines through.
                // With a raw data file all of it is the disk, whoever wrote it.
                let subclusters = header.hasRawDataFile ? SubclusterBitmap.allAllocated : SubclusterBitmap(rawValue: 0)
                L2Entry(clusterAt: offset, isCopied: true, subclusters: subclusters).encode(into: &bytes, at: Int(entry), in: geometry)
            }
            try await write(table, at: layout.offset(of: layout.l2Cluster + index))
        }
    }

    /// - Parameter isStale: the device of the image still has what it held.
    private func preallocate(
        _ layout: ImageLayout, _ options: ImageOptions, _ dataFile: (any ResizableDevice)?, isStale: Bool
    ) async throws(ImageError) {
        try await resize(to: layout.fileByteCount)
        let place = dataFile ?? device
        let start = dataFile == nil ? layout.offset(of: layout.dataCluster) : 0
        let byteCount = layout.mappedClusterCount << UInt64(geometry.clusterBits)
        do throws(BlockError) {
            var isStale = isStale
            if let dataFile { isStale = try await Self.empty(dataFile, to: header.virtualByteCount) }
            guard layout.mappedClusterCount > 0 else { return }
            guard let range = ByteRange(start: start, count: dataFile == nil ? byteCount : header.virtualByteCount), !range.isEmpty else {
                return
            }
            try await Self.reserve(range, of: place, isStale: isStale, options.preallocation)
        } catch {
            throw .device(error)
        }
    }

    /// Gives a device a size, and takes what it held.
    ///
    /// - Returns: whether it still has that: a disk of the host does not become shorter.
    private static func empty(_ device: any ResizableDevice, to byteCount: UInt64) async throws(BlockError) -> Bool {
        try await device.resize(to: 0)
        let isStale = device.currentByteCount > 0
        try await device.resize(to: byteCount)
        return isStale
    }

    /// Makes a range of zeroes, which it is already unless the device `isStale`, take its space.
    private static func reserve(
        _ range: ByteRange, of device: any ResizableDevice, isStale: Bool, _ preallocation: ImageOptions.Preallocation
    ) async throws(BlockError) {
        switch preallocation {
        case .off, .metadata:
            if isStale { try await device.writeZeroes(range, .mayUnmap) }
        case .falloc:
            guard device.info.abilities.zeroes == .native else { throw BlockError(.unsupported, "this file cannot reserve space") }
            try await device.writeZeroes(range, [])
        case .full:
            let zeroes = [UInt8](repeating: 0, count: Int(min(device.info.blockSize.maximum, 1 << 20)))
            var rest = range
            while !rest.isEmpty {
                let count = Int(min(rest.count, UInt64(zeroes.count)))
                try await device.write(at: rest.start, from: zeroes.rawBytes.extracting(..<count), [])
                rest = rest.dropFirst(UInt64(count))
            }
        }
    }
}

/// Which cluster of a new image holds what. Everything up to the end has one reference.
struct ImageLayout {
    let geometry: ImageGeometry
    let hasDataFile: Bool
    var refcountTableClusterCount: UInt64 = 1
    var refcountBlockCount: UInt64 = 1
    let l1ClusterCount: UInt64
    let l2TableCount: UInt64
    /// Guest clusters that are mapped from the start.
    let mappedClusterCount: UInt64

    init(_ header: ImageHeader, _ options: ImageOptions) throws(ImageError) {
        geometry = header.geometry
        hasDataFile = options.dataFile != nil
        l1ClusterCount = geometry.clusterCount(of: header.l1TableByteCount)
        let isMapped = options.preallocation != .off || options.dataFile?.isRaw == true
        l2TableCount = isMapped ? UInt64(header.l1EntryCount) : 0
        mappedClusterCount = isMapped ? geometry.clusterCount(of: header.virtualByteCount) : 0
        // The refcounts count themselves: more of them until they are enough.
        while true {
            let before = (refcountTableClusterCount, refcountBlockCount)
            refcountBlockCount = (clusterCount + UInt64(geometry.refcountBlockEntryCount) - 1) >> UInt64(geometry.refcountBlockBits)
            refcountTableClusterCount = geometry.clusterCount(of: refcountBlockCount * 8)
            if before == (refcountTableClusterCount, refcountBlockCount) { break }
        }
        guard refcountTableClusterCount << UInt64(geometry.clusterBits) <= UInt64(FormatLimits.refcountTableByteCount) else {
            throw .refused("preallocation of so much needs a larger cluster size, or smaller refcounts")
        }
    }

    var l1Cluster: UInt64 { 1 + refcountTableClusterCount + refcountBlockCount }
    var l1EndCluster: UInt64 { l1Cluster + l1ClusterCount }
    var l2Cluster: UInt64 { l1EndCluster }
    /// Of the image, or of the data file.
    var dataCluster: UInt64 { hasDataFile ? 0 : l2Cluster + l2TableCount }
    /// All clusters of the image.
    var clusterCount: UInt64 { l2Cluster + l2TableCount + (hasDataFile ? 0 : mappedClusterCount) }
    var fileByteCount: UInt64 { offset(of: clusterCount) }

    func offset(of cluster: UInt64) -> UInt64 { cluster << UInt64(geometry.clusterBits) }
}
