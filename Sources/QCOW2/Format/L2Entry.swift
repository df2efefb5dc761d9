/// An entry of an L2 table, as it stands in the image: what is known of one guest cluster.
///
///     63       62           61…56   55…9                8…1   0
///     | copied | compressed | 0     | offset of cluster | 0   | zero |     standard
///     | 0      | 1          | see `CompressedCluster`                |     compressed
///
/// With extended L2 entries 8 bytes follow, a `SubclusterBitmap`, and bit 0 is always 0.
///
/// Spec: qcow2, "Cluster mapping", L2 table entry; "Extended L2 Entries".
public struct L2Entry: Equatable, Hashable, Sendable {
    public var rawDescriptor: UInt64
    /// Of extended entries; else 0 and without meaning.
    public var subclusters: SubclusterBitmap

    public init(rawDescriptor: UInt64, subclusters: SubclusterBitmap = SubclusterBitmap(rawValue: 0)) {
        self.rawDescriptor = rawDescriptor
        self.subclusters = subclusters
    }

    public static let unallocated = L2Entry(rawDescriptor: 0)

    /// The `index`-th entry of a table. Traps outside of the span.
    public init(decoding table: RawSpan, at index: Int, in geometry: ImageGeometry) {
        let position = index * geometry.l2EntryByteCount
        rawDescriptor = table.bigEndian(at: position)
        subclusters = SubclusterBitmap(rawValue: geometry.hasExtendedL2 ? table.bigEndian(at: position + 8) : 0)
    }

    /// Writes the entry as the `index`-th of a table. Traps outside of the span.
    public func encode(into table: inout MutableRawSpan, at index: Int, in geometry: ImageGeometry) {
        let position = index * geometry.l2EntryByteCount
        table.store(bigEndian: rawDescriptor, at: position)
        if geometry.hasExtendedL2 { table.store(bigEndian: subclusters.rawValue, at: position + 8) }
    }

    /// A cluster with data, or with extended entries one whose subclusters say what they are.
    ///
    /// - Precondition: `offset` has no bits outside of 9…55.
    public init(clusterAt offset: UInt64, isCopied: Bool, subclusters: SubclusterBitmap = SubclusterBitmap(rawValue: 0)) {
        precondition(offset & ~FormatLimits.hostOffsetMask == 0)
        self.init(rawDescriptor: offset | (isCopied ? EntryFlags.copied : 0), subclusters: subclusters)
    }

    /// A cluster of zeroes, in version 3. It may keep a host cluster that is not read.
    ///
    /// - Precondition: as above.
    public init(zeroesIn geometry: ImageGeometry, preallocatedAt offset: UInt64? = nil, isCopied: Bool = false) {
        precondition((offset ?? 0) & ~FormatLimits.hostOffsetMask == 0)
        let place = offset.map { $0 | (isCopied ? EntryFlags.copied : 0) } ?? 0
        if geometry.hasExtendedL2 {
            self.init(rawDescriptor: place, subclusters: .allZero)
        } else {
            self.init(rawDescriptor: place | EntryFlags.zero)
        }
    }

    public init(_ cluster: CompressedCluster, in geometry: ImageGeometry) {
        self.init(rawDescriptor: EntryFlags.compressed | cluster.rawDescriptor(in: geometry))
    }

    public var isCompressed: Bool { rawDescriptor & EntryFlags.compressed != 0 }
    /// The host cluster has exactly one reference, so it may be written in place. Accurate below the active L1 table alone.
    public var isCopied: Bool { rawDescriptor & EntryFlags.copied != 0 }
    /// Of a standard entry: where its cluster starts, unchecked; 0 when there is none (or, with an external data file, at its start).
    public var hostOffset: UInt64 { rawDescriptor & FormatLimits.hostOffsetMask }
    /// Of a standard entry: bits that must be 0 and are not.
    public func reservedBits(in geometry: ImageGeometry) -> UInt64 {
        let known = FormatLimits.hostOffsetMask | EntryFlags.copied | EntryFlags.compressed | (geometry.hasExtendedL2 ? 0 : EntryFlags.zero)
        return isCompressed ? 0 : rawDescriptor & ~known
    }

    /// What the entry means.
    ///
    /// - Parameter hasDataFile: clusters lie in an external data file, where offset 0 is a place like any other.
    /// - Throws: `.corrupt` for an offset inside of a cluster, for a cluster that cannot be compressed and is, for a subcluster that is
    ///   data and zero at once or is data and has no place. Says nothing of the size of the file.
    public func mapping(in geometry: ImageGeometry, hasDataFile: Bool) throws(FormatError) -> ClusterMapping {
        if isCompressed {
            guard !hasDataFile else { throw .corrupt("a compressed cluster in an image with an external data file") }
            return .compressed(CompressedCluster(rawDescriptor: rawDescriptor, in: geometry))
        }
        let offset = hostOffset
        guard geometry.isAligned(offset) else { throw .corrupt("an L2 entry names a cluster at \(offset.hex), inside of a cluster") }
        let place: UInt64? = offset != 0 || (hasDataFile && isCopied) ? offset : nil
        guard geometry.hasExtendedL2 else {
            if rawDescriptor & EntryFlags.zero != 0 { return .zero(preallocated: place) }
            return place.map { .data($0) } ?? .unallocated
        }
        guard subclusters.isConsistent else {
            throw .corrupt("an L2 entry has subclusters that are data and zeroes at once (\(subclusters.rawValue.hex))")
        }
        guard place != nil || subclusters.allocated == 0 else { throw .corrupt("an L2 entry has subclusters with data and no cluster") }
        return switch (subclusters.allocated, subclusters.zero) {
        case (.max, _): place.map { .data($0) } ?? .unallocated
        case (_, .max): .zero(preallocated: place)
        case (0, 0) where place == nil: .unallocated
        default: .subclusters(place, subclusters)
        }
    }
}

/// What an L2 entry says of its guest cluster.
public enum ClusterMapping: Equatable, Sendable {
    /// Reads come from the backing file, or are zeroes.
    case unallocated
    /// Reads as zeroes. The host cluster, if there is one, belongs to it and is not read.
    case zero(preallocated: UInt64?)
    /// The whole cluster lies here.
    case data(UInt64)
    /// Each subcluster is data, zeroes or unallocated. The host cluster, if any, belongs to it.
    case subclusters(UInt64?, SubclusterBitmap)
    case compressed(CompressedCluster)

    /// Where the host cluster is that belongs to a standard entry.
    public var hostCluster: UInt64? {
        switch self {
        case .unallocated, .compressed: nil
        case .zero(let place), .subclusters(let place, _): place
        case .data(let place): place
        }
    }
}

/// Which of the 32 subclusters of a cluster are data, and which read as zeroes.
public struct SubclusterBitmap: Equatable, Hashable, Sendable {
    /// Bits 0…31: allocated, bits 32…63: zero; the lowest of each is the first subcluster.
    public var rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    public init(allocated: UInt32, zero: UInt32) { rawValue = UInt64(zero) << 32 | UInt64(allocated) }

    public static let allAllocated = SubclusterBitmap(allocated: .max, zero: 0)
    public static let allZero = SubclusterBitmap(allocated: 0, zero: .max)

    public var allocated: UInt32 { UInt32(truncatingIfNeeded: rawValue) }
    public var zero: UInt32 { UInt32(truncatingIfNeeded: rawValue >> 32) }
    /// No subcluster is both.
    public var isConsistent: Bool { allocated & zero == 0 }
}
