/// An entry of an L1 table: where the L2 table of a run of guest clusters is.
///
///     63       62…56   55…9               8…0
///     | copied | 0     | offset of table  | 0 |
///
/// Spec: qcow2, "Cluster mapping", L1 table entry.
public struct L1Entry: Equatable, Hashable, Sendable {
    public var rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    public static let byteCount = 8
    public static let unallocated = L1Entry(rawValue: 0)

    /// - Precondition: `offset` has no bits outside of 9…55.
    public init(tableOffset offset: UInt64, isCopied: Bool) {
        precondition(offset & ~FormatLimits.hostOffsetMask == 0)
        rawValue = offset | (isCopied ? EntryFlags.copied : 0)
    }

    /// Where the L2 table starts in the image, unchecked; 0 when there is none.
    public var tableOffset: UInt64 { rawValue & FormatLimits.hostOffsetMask }
    /// The table has exactly one reference, so it may be changed in place. Accurate in the active L1 table alone.
    public var isCopied: Bool { rawValue & EntryFlags.copied != 0 }
    public var isAllocated: Bool { tableOffset != 0 }
    /// Bits that must be 0 and are not.
    public var reservedBits: UInt64 { rawValue & ~(FormatLimits.hostOffsetMask | EntryFlags.copied) }

    /// Where the L2 table starts; nil when there is none.
    ///
    /// - Throws: `.corrupt` for an offset inside of a cluster. Says nothing of the size of the file.
    public func table(in geometry: ImageGeometry) throws(FormatError) -> UInt64? {
        let offset = tableOffset
        guard offset != 0 else { return nil }
        guard geometry.isAligned(offset) else { throw Self.unaligned(offset) }
        return offset
    }

    @inline(never) private static func unaligned(_ offset: UInt64) -> FormatError {
        .corrupt("an L1 entry names an L2 table at \(offset.hex), inside of a cluster")
    }
}

/// Flags that L1 and L2 entries share.
enum EntryFlags {
    static let copied: UInt64 = 1 << 63
    static let compressed: UInt64 = 1 << 62
    /// In standard L2 entries.
    static let zero: UInt64 = 1
}
