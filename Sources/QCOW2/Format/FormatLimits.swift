/// Bounds of what an image may ask of its reader. Those of QEMU 7.2, so that the two open the same images.
public enum FormatLimits {
    /// Of an L1 table, active or of a snapshot.
    public static let l1TableByteCount = 32 << 20
    public static let refcountTableByteCount = 8 << 20
    public static let snapshotCount = 65536
    /// Of the whole snapshot table.
    public static let snapshotTableByteCount = 1024 * snapshotCount
    /// Of one snapshot's extra data.
    public static let snapshotExtraByteCount = 1024
    public static let backingFileNameByteCount = 1023
    public static let backingFormatByteCount = 15
    public static let bitmapCount = 65535
    /// Of the whole bitmap directory: every bitmap with the longest name.
    public static let bitmapDirectoryByteCount = bitmapCount * (BitmapDirectoryEntry.fixedByteCount + bitmapNameByteCount + 1)
    public static let bitmapNameByteCount = 1023
    public static let bitmapGranularityBits = 9...31
    /// Of one bitmap's data in the image.
    public static let bitmapByteCount = 512 << 20
    /// Entries of one bitmap table.
    public static let bitmapTableEntryCount = 0x800_0000
    /// Offsets in L1, L2 and bitmap tables have 56 bits.
    public static let hostOffsetMask: UInt64 = 0x00ff_ffff_ffff_fe00
    /// The virtual size: what a signed 64-bit offset can address.
    public static let virtualByteCount = UInt64(Int64.max)
}
