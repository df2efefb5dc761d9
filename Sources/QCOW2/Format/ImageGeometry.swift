/// The sizes that follow from the header's exponents. All are powers of two, and none of the arithmetic below can overflow.
///
/// Spec: qcow2, "Host cluster management", "Cluster mapping", "Extended L2 Entries".
public struct ImageGeometry: Equatable, Hashable, Sendable {
    /// log2 of the cluster size in bytes, 9…21; at least 14 with extended L2 entries.
    public let clusterBits: Int
    /// log2 of the width of a refcount in bits, 0…6.
    public let refcountOrder: Int
    /// L2 entries have 16 bytes, with a bitmap of 32 subclusters; else 8.
    public let hasExtendedL2: Bool

    public static let clusterBitsRange = 9...21
    public static let refcountOrderRange = 0...6
    public static let subclusterCount = 32

    /// Nil when a number is outside of its bounds, or subclusters would be smaller than a sector.
    public init?(clusterBits: Int, refcountOrder: Int, hasExtendedL2: Bool) {
        guard Self.clusterBitsRange.contains(clusterBits), Self.refcountOrderRange.contains(refcountOrder),
            !hasExtendedL2 || clusterBits >= 14
        else { return nil }
        self.clusterBits = clusterBits
        self.refcountOrder = refcountOrder
        self.hasExtendedL2 = hasExtendedL2
    }

    public var clusterByteCount: Int { 1 << clusterBits }
    /// The bits of an offset that lie within its cluster.
    public var clusterMask: UInt64 { (1 << UInt64(clusterBits)) - 1 }
    /// The unit of allocation: a subcluster with extended L2 entries, else a cluster.
    public var subclusterByteCount: Int { hasExtendedL2 ? clusterByteCount / Self.subclusterCount : clusterByteCount }
    public var l2EntryByteCount: Int { hasExtendedL2 ? 16 : 8 }
    /// log2 of the entries of an L2 table.
    public var l2Bits: Int { clusterBits - (hasExtendedL2 ? 4 : 3) }
    public var l2EntryCount: Int { 1 << l2Bits }
    /// Guest bytes that one L2 table maps, at most 2^39.
    public var l2CoverByteCount: UInt64 { 1 << UInt64(clusterBits + l2Bits) }
    public var refcountWidth: RefcountWidth { RefcountWidth(order: refcountOrder) }
    /// log2 of the entries of a refcount block.
    public var refcountBlockBits: Int { clusterBits + 3 - refcountOrder }
    public var refcountBlockEntryCount: Int { 1 << refcountBlockBits }

    public func isAligned(_ offset: UInt64) -> Bool { offset & clusterMask == 0 }

    /// How many clusters `byteCount` bytes touch, the last perhaps in part.
    public func clusterCount(of byteCount: UInt64) -> UInt64 {
        byteCount >> UInt64(clusterBits) + (byteCount & clusterMask == 0 ? 0 : 1)
    }

    /// How many entries an L1 table needs to map `byteCount` guest bytes.
    public func l1EntryCount(for byteCount: UInt64) -> UInt64 {
        let cover = UInt64(clusterBits + l2Bits)
        return byteCount >> cover + (byteCount & ((1 << cover) - 1) == 0 ? 0 : 1)
    }

    public func l1Index(of guestOffset: UInt64) -> UInt64 { guestOffset >> UInt64(clusterBits + l2Bits) }

    public func l2Index(of guestOffset: UInt64) -> Int {
        Int(truncatingIfNeeded: guestOffset >> UInt64(clusterBits)) & (l2EntryCount - 1)
    }

    /// Which of the cluster's subclusters holds the byte, 0…31; 0 without extended L2 entries.
    public func subclusterIndex(of guestOffset: UInt64) -> Int {
        hasExtendedL2 ? Int(guestOffset & clusterMask) >> (clusterBits - 5) : 0
    }
}
