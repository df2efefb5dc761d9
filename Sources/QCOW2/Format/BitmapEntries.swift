/// One bitmap stored in the image, an entry of the bitmap directory. Its length varies; each starts at a multiple of 8 bytes.
///
///     0              8            12      16     17                 18            20
///     | table offset | table size | flags | type | granularity bits | name length | extra length | extra data · name · zeroes
///
/// Spec: qcow2, "Bitmaps", Bitmap directory.
public struct BitmapDirectoryEntry: Equatable, Sendable {
    public static let fixedByteCount = 24
    /// The only type there is.
    static let dirtyTracking: UInt8 = 1

    public struct Flags: OptionSet, Hashable, Sendable {
        public let rawValue: UInt32
        public init(rawValue: UInt32) { self.rawValue = rawValue }

        /// Not stored since it was last changed: inconsistent, unless somebody has it open.
        public static let inUse = Flags(rawValue: 1 << 0)
        /// Enabled: every write to the disk must be recorded, from the first on.
        public static let auto = Flags(rawValue: 1 << 1)
        /// The bitmap may be used by those who do not know its extra data.
        public static let extraDataCompatible = Flags(rawValue: 1 << 2)
        static let known: Flags = [.inUse, .auto, .extraDataCompatible]
    }

    public var tableOffset: UInt64
    /// Entries of its bitmap table.
    public var tableEntryCount: UInt32
    public var flags: Flags
    /// log2 of the guest bytes for each bit, 9…31.
    public var granularityBits: Int
    /// Unique in the image; not necessarily text.
    public var name: [UInt8]
    public var extraData: [UInt8]

    public init(
        tableOffset: UInt64, tableEntryCount: UInt32, flags: Flags, granularityBits: Int, name: [UInt8], extraData: [UInt8] = []
    ) {
        self.tableOffset = tableOffset
        self.tableEntryCount = tableEntryCount
        self.flags = flags
        self.granularityBits = granularityBits
        self.name = name
        self.extraData = extraData
    }

    /// May be read and changed by us: it has no extra data, or says that this does not matter.
    public var isUsable: Bool { extraData.isEmpty || flags.contains(.extraDataCompatible) }

    /// Reads the entry at `position` and moves `position` to the next.
    ///
    /// - Throws: `.corrupt` when the bytes end before the entry, for reserved flags, another type, an empty name, a table that lies inside
    ///   of a cluster; `.unsupported` for what goes over `FormatLimits`.
    public init(decoding directory: RawSpan, at position: inout Int, in geometry: ImageGeometry) throws(FormatError) {
        let start = position
        guard start >= 0, start <= directory.byteCount, directory.byteCount - start >= Self.fixedByteCount else { throw Self.truncated }
        tableOffset = directory.bigEndian(at: start)
        tableEntryCount = directory.bigEndian(at: start + 8)
        flags = Flags(rawValue: directory.bigEndian(at: start + 12))
        let type = directory.bigEndian(UInt8.self, at: start + 16)
        granularityBits = Int(directory.bigEndian(UInt8.self, at: start + 17))
        let nameCount = Int(directory.bigEndian(UInt16.self, at: start + 18))
        let extraCount = Int(directory.bigEndian(UInt32.self, at: start + 20))
        let extra = start + Self.fixedByteCount
        guard directory.byteCount - extra >= extraCount + nameCount else { throw Self.truncated }
        extraData = directory.bytes(at: extra, count: extraCount)
        name = directory.bytes(at: extra + extraCount, count: nameCount)
        let label = String(decoding: name, as: UTF8.self)
        guard nameCount > 0 else { throw .corrupt("a bitmap without a name") }
        guard nameCount <= FormatLimits.bitmapNameByteCount else {
            throw .unsupported("a bitmap's name has \(nameCount) bytes; at most \(FormatLimits.bitmapNameByteCount)")
        }
        guard type == Self.dirtyTracking else { throw .corrupt("bitmap \"\(label)\" is of unknown type \(type)") }
        guard flags.isSubset(of: .known) else {
            throw .corrupt("bitmap \"\(label)\" has reserved flags (0x\(String(flags.rawValue, radix: 16)))")
        }
        guard FormatLimits.bitmapGranularityBits.contains(granularityBits) else {
            throw .unsupported("bitmap \"\(label)\" has a granularity of 2^\(granularityBits) bytes; 2^9 to 2^31 are supported")
        }
        guard geometry.isAligned(tableOffset), tableOffset != 0 else {
            throw .corrupt("the table of bitmap \"\(label)\" is at \(tableOffset.hex), inside of a cluster or of the header")
        }
        guard tableEntryCount > 0, Int(tableEntryCount) <= FormatLimits.bitmapTableEntryCount,
            UInt64(tableEntryCount) << UInt64(geometry.clusterBits) <= UInt64(FormatLimits.bitmapByteCount)
        else {
            throw .unsupported("the table of bitmap \"\(label)\" has \(tableEntryCount) entries: none, or data of more than 512 MiB")
        }
        let end = extra + extraCount + nameCount
        position = min((end + 7) & ~7, directory.byteCount)
    }

    /// The entry as it stands in the directory, with its padding.
    ///
    /// - Precondition: the name has at most 65535 bytes.
    public var encoded: [UInt8] {
        var out = ByteBuilder()
        out.append(tableOffset)
        out.append(tableEntryCount)
        out.append(flags.rawValue)
        out.append(Self.dirtyTracking)
        out.append(UInt8(truncatingIfNeeded: granularityBits))
        out.append(UInt16(name.count))
        out.append(UInt32(extraData.count))
        out.append(contentsOf: extraData)
        out.append(contentsOf: name)
        out.pad(toMultipleOf: 8)
        return out.bytes
    }

    private static var truncated: FormatError { .corrupt("the bitmap directory ends in the middle of an entry") }

    /// Reads a directory, which must hold exactly `count` entries with different names.
    public static func decodeDirectory(_ directory: RawSpan, count: Int, in geometry: ImageGeometry) throws(FormatError)
        -> [BitmapDirectoryEntry]
    {
        var entries: [BitmapDirectoryEntry] = []
        var names: Set<[UInt8]> = []
        var position = 0
        while entries.count < count {
            let entry = try BitmapDirectoryEntry(decoding: directory, at: &position, in: geometry)
            guard names.insert(entry.name).inserted else {
                throw .corrupt("two bitmaps are called \"\(String(decoding: entry.name, as: UTF8.self))\"")
            }
            entries.append(entry)
        }
        guard position == directory.byteCount else {
            throw .corrupt("the bitmap directory has \(directory.byteCount) bytes, its \(count) entries \(position)")
        }
        return entries
    }

    /// How many table entries a bitmap with this granularity needs for a disk of `virtualByteCount` bytes. Nil when its data would be
    /// larger than `FormatLimits` allows.
    public static func tableEntryCount(for virtualByteCount: UInt64, granularityBits: Int, in geometry: ImageGeometry) -> UInt32? {
        guard (0...63).contains(granularityBits) else { return nil }
        let mask = (1 as UInt64) << UInt64(granularityBits) - 1
        let bits = virtualByteCount >> UInt64(granularityBits) + (virtualByteCount & mask == 0 ? 0 : 1)
        let bytes = bits / 8 + (bits % 8 == 0 ? 0 : 1)
        return bytes <= UInt64(FormatLimits.bitmapByteCount) ? UInt32(geometry.clusterCount(of: bytes)) : nil
    }
}

/// An entry of a bitmap table: where one cluster of the bitmap's bits is. Bit n of the data, lowest of a byte first, stands for the n-th
/// run of guest bytes.
///
/// Spec: qcow2, "Bitmaps", Bitmap table.
public enum BitmapTableEntry: Equatable, Hashable, Sendable {
    case allZeroes
    case allOnes
    /// A host cluster in the image, aligned.
    case cluster(UInt64)

    public static let byteCount = 8

    /// - Throws: `.corrupt` for reserved bits or an offset inside of a cluster. Says nothing of the size of the file.
    public init(rawValue: UInt64, in geometry: ImageGeometry) throws(FormatError) {
        let offset = rawValue & FormatLimits.hostOffsetMask
        guard rawValue & ~(FormatLimits.hostOffsetMask | 1) == 0, offset == 0 || rawValue & 1 == 0, geometry.isAligned(offset) else {
            throw .corrupt("an entry of a bitmap table is \(rawValue.hex): reserved bits, or inside of a cluster")
        }
        self = offset != 0 ? .cluster(offset) : rawValue & 1 == 0 ? .allZeroes : .allOnes
    }

    public var rawValue: UInt64 {
        switch self {
        case .allZeroes: 0
        case .allOnes: 1
        case .cluster(let offset): offset
        }
    }
}
