import Block

/// Fills a new image with compressed clusters, from the front of the disk to its end.
///
/// Packed clusters follow each other without gaps, so many share a host cluster: as many as its refcount can count. The refcounts come
/// last, counted from the tables; until then the image is marked dirty.
public final class CompressedWriter {
    private let image: ImageFile
    private var l1: [UInt64]
    private var table: (index: Int, bytes: [UInt8])?
    /// The end of what is written, in bytes.
    private var end: UInt64
    /// References to the host cluster that `end` lies in; 0 at its start.
    private var sharedCount: UInt64 = 0
    private var geometry: ImageGeometry { image.geometry }

    /// - Parameter image: fresh from `ImageFile.create`, without preallocation or data file.
    public init(_ image: ImageFile) async throws(ImageError) {
        self.image = image
        l1 = [UInt64](repeating: 0, count: Int(image.header.l1EntryCount))
        end = image.geometry.clusterCount(of: image.byteCount) << UInt64(image.geometry.clusterBits)
        if image.header.version == 3 {
            image.header.incompatibleFeatures.insert(.dirty)
            try await image.writeHeader()
        }
    }

    /// Stores a cluster of the disk; those left out read as zeroes, or as what lies below.
    ///
    /// - Parameters:
    ///   - packed: what `CompressionType.shrink` made of it; nil when it did not become smaller.
    ///   - cluster: the whole cluster, zeroes behind the end of the disk.
    /// - Precondition: `offset` is the start of a cluster, behind all that were written before.
    public func write(_ packed: [UInt8]?, of cluster: [UInt8], at offset: UInt64) async throws(ImageError) {
        let index = Int(geometry.l1Index(of: offset))
        if table?.index != index {
            try await finishTable()
            table = (index, [UInt8](repeating: 0, count: geometry.clusterByteCount))
        }
        let entry: L2Entry
        if sharedCount >= geometry.refcountWidth.maximum { alignEnd() }
        if let packed, let place = CompressedCluster(hostOffset: end, byteCount: packed.count, in: geometry) {
            try await image.write(packed, at: end)
            advance(by: packed.count)
            entry = L2Entry(place, in: geometry)
        } else {
            alignEnd()
            try await image.write(cluster, at: end)
            entry = L2Entry(
                clusterAt: end, isCopied: true, subclusters: geometry.hasExtendedL2 ? .allAllocated : SubclusterBitmap(rawValue: 0))
            end += UInt64(geometry.clusterByteCount)
        }
        guard end <= FormatLimits.hostOffsetMask else { throw .refused("the file would become too large") }
        guard var bytes = table?.bytes else { return }
        table = nil
        var span = bytes.mutableSpan
        // SAFETY: any bit pattern is a byte.
        var raw = unsafe span.mutableBytes
        entry.encode(into: &raw, at: geometry.l2Index(of: offset), in: geometry)
        table = (index, bytes)
    }

    /// Behind a packed cluster, which is smaller than a cluster and so lies in two at most.
    private func advance(by count: Int) {
        let start = end
        end += UInt64(count)
        let bits = UInt64(geometry.clusterBits)
        let isInside = end & (1 << bits - 1) != 0
        sharedCount = !isInside ? 0 : start >> bits == end >> bits ? sharedCount + 1 : 1
    }

    private func alignEnd() {
        sharedCount = 0
        end = geometry.clusterCount(of: end) << UInt64(geometry.clusterBits)
    }

    private func finishTable() async throws(ImageError) {
        guard let (index, bytes) = table else { return }
        alignEnd()
        try await image.write(bytes, at: end)
        l1[index] = L1Entry(tableOffset: end, isCopied: true).rawValue
        end += UInt64(geometry.clusterByteCount)
        table = nil
    }

    /// Writes the tables, then the refcounts.
    public func finish() async throws(ImageError) {
        try await finishTable()
        alignEnd()
        try await image.resize(to: end)
        try await image.writeEntries(l1, at: image.header.l1TableOffset)
        try await image.flush()
        let report = try await image.check(repair: .all)
        guard report.errorCount == 0, report.corruptionCount == 0 else {
            throw .refused("the refcounts of the new image could not be made: \(report.findings.last ?? "")")
        }
    }
}
