internal import Block

/// What has to be done to one guest cluster so that a part of it can be written.
struct ClusterPlan: Equatable {
    /// First guest byte of the cluster.
    let clusterStart: UInt64
    /// What will be written.
    let touched: ByteRange
    /// Where the cluster is and stays; nil: it needs a new place.
    let place: UInt64?
    /// Guest bytes that must be copied to the place because they count as data afterwards and are not there yet.
    let fills: [ByteRange]
    /// Of extended entries: the state afterwards.
    let subclusters: SubclusterBitmap

    /// - Throws: `.corrupt` for an entry that breaks the rules.
    init(_ old: L2Entry, clusterStart: UInt64, touched: ByteRange, _ geometry: ImageGeometry, hasDataFile: Bool) throws(FormatError) {
        self.clusterStart = clusterStart
        self.touched = touched
        let mapping = try old.mapping(in: geometry, hasDataFile: hasDataFile)
        if hasDataFile {
            place = clusterStart
        } else {
            place = old.isCopied ? mapping.hostCluster : nil
        }
        guard geometry.hasExtendedL2 else {
            fills = Self.around(touched, in: ByteRange(start: clusterStart, count: UInt64(geometry.clusterByteCount)))
            subclusters = SubclusterBitmap(rawValue: 0)
            return
        }
        let size = UInt64(geometry.subclusterByteCount)
        let low = (touched.start - clusterStart) / size
        let high = (touched.end - clusterStart + size - 1) / size
        let written = Self.mask(low..<high)
        let oldData: UInt32 =
            switch mapping {
            case .unallocated, .zero: 0
            case .data, .compressed: .max
            case .subclusters(_, let bitmap): bitmap.allocated
            }
        let oldZero: UInt32 =
            switch mapping {
            case .unallocated, .data, .compressed: 0
            case .zero: .max
            case .subclusters(_, let bitmap): bitmap.zero
            }
        let stays = place != nil && mapping.hostCluster == place
        let after = written | oldData
        // What is at its place already needs no copy.
        let missing = stays ? written & ~oldData : after
        var fills: [ByteRange] = []
        var index: UInt64 = 0
        while index < 32 {
            guard missing >> UInt32(index) & 1 == 1 else {
                index += 1
                continue
            }
            var end = index + 1
            while end < 32, missing >> UInt32(end) & 1 == 1 { end += 1 }
            fills += Self.around(touched, in: ByteRange(start: clusterStart + index * size, count: (end - index) * size))
            index = end
        }
        self.fills = fills
        subclusters = SubclusterBitmap(allocated: after, zero: oldZero & ~after)
    }

    /// What of `whole` lies before and behind `part`.
    private static func around(_ part: ByteRange, in whole: ByteRange?) -> [ByteRange] {
        guard let whole else { return [] }
        guard whole.overlaps(part) else { return [whole] }
        let before = part.start > whole.start ? whole.prefix(part.start - whole.start) : whole.prefix(0)
        let after = part.end < whole.end ? whole.dropFirst(part.end - whole.start) : whole.prefix(0)
        return [before, after].filter { !$0.isEmpty }
    }

    private static func mask(_ bits: Range<UInt64>) -> UInt32 {
        UInt32(truncatingIfNeeded: (1 as UInt64) << bits.upperBound - 1) & ~UInt32(truncatingIfNeeded: (1 as UInt64) << bits.lowerBound - 1)
    }
}
