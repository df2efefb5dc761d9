/// One internal snapshot, an entry of the snapshot table. Its length varies; each starts at a multiple of 8 bytes from the table's start.
///
///     0           8         12          14            16        20            24          32           36
///     | L1 offset | L1 size | id length | name length | seconds | nanoseconds | VM clock  | state size | extra length |
///     extra data · id · name · zeroes up to a multiple of 8
///
/// Spec: qcow2, "Snapshots", Snapshot table entry.
public struct SnapshotEntry: Equatable, Sendable {
    public static let fixedByteCount = 40

    public var l1TableOffset: UInt64
    public var l1EntryCount: UInt32
    /// Unique in the image; not necessarily text.
    public var id: [UInt8]
    public var name: [UInt8]
    /// When it was taken, since the Epoch.
    public var seconds: UInt32
    public var nanoseconds: UInt32
    /// How long the guest had run, in nanoseconds.
    public var guestNanoseconds: UInt64
    /// The size of the state of the machine saved with it, in bytes; 0: the disk alone. The 64-bit field wins when it is there.
    public var stateByteCount: UInt64
    /// Of the virtual disk then, in bytes; nil when the entry does not say.
    public var virtualByteCount: UInt64?
    /// Number of guest instructions, of a machine that is replayed; nil when the entry does not say.
    public var instructionCount: UInt64?
    /// Extra data behind the fields that we know, kept as it is.
    public var unknownExtra: [UInt8]

    public init(
        l1TableOffset: UInt64, l1EntryCount: UInt32, id: [UInt8], name: [UInt8], seconds: UInt32 = 0, nanoseconds: UInt32 = 0,
        guestNanoseconds: UInt64 = 0, stateByteCount: UInt64 = 0, virtualByteCount: UInt64? = nil, instructionCount: UInt64? = nil,
        unknownExtra: [UInt8] = []
    ) {
        self.l1TableOffset = l1TableOffset
        self.l1EntryCount = l1EntryCount
        self.id = id
        self.name = name
        self.seconds = seconds
        self.nanoseconds = nanoseconds
        self.guestNanoseconds = guestNanoseconds
        self.stateByteCount = stateByteCount
        self.virtualByteCount = virtualByteCount
        self.instructionCount = instructionCount
        self.unknownExtra = unknownExtra
    }

    /// Reads the entry at `position` and moves `position` to the next.
    ///
    /// - Throws: `.corrupt` when the bytes end before the entry, when the L1 table lies inside of a cluster; `.unsupported` when it, or
    ///   the extra data, is larger than `FormatLimits` says.
    public init(decoding table: RawSpan, at position: inout Int, in geometry: ImageGeometry) throws(FormatError) {
        let start = position
        guard start >= 0, start <= table.byteCount, table.byteCount - start >= Self.fixedByteCount else { throw Self.truncated }
        l1TableOffset = table.bigEndian(at: start)
        l1EntryCount = table.bigEndian(at: start + 8)
        let idCount = Int(table.bigEndian(UInt16.self, at: start + 12))
        let nameCount = Int(table.bigEndian(UInt16.self, at: start + 14))
        seconds = table.bigEndian(at: start + 16)
        nanoseconds = table.bigEndian(at: start + 20)
        guestNanoseconds = table.bigEndian(at: start + 24)
        stateByteCount = UInt64(table.bigEndian(UInt32.self, at: start + 32))
        let extraByteCount = table.bigEndian(UInt32.self, at: start + 36)
        guard extraByteCount <= UInt32(FormatLimits.snapshotExtraByteCount) else {
            throw .unsupported("a snapshot with \(extraByteCount) bytes of extra data; at most \(FormatLimits.snapshotExtraByteCount)")
        }
        let extraCount = Int(extraByteCount)
        let extra = start + Self.fixedByteCount
        guard table.byteCount - extra >= extraCount + idCount + nameCount else { throw Self.truncated }
        if extraCount >= 8 { stateByteCount = table.bigEndian(at: extra) }
        if extraCount >= 16 { virtualByteCount = table.bigEndian(at: extra + 8) }
        if extraCount >= 24 { instructionCount = table.bigEndian(at: extra + 16) }
        let known = extraCount >= 24 ? 24 : extraCount >= 16 ? 16 : extraCount >= 8 ? 8 : 0
        // Less than the first field is no field: not kept.
        unknownExtra = known == 0 ? [] : table.bytes(at: extra + known, count: extraCount - known)
        id = table.bytes(at: extra + extraCount, count: idCount)
        name = table.bytes(at: extra + extraCount + idCount, count: nameCount)
        guard geometry.isAligned(l1TableOffset) else {
            throw .corrupt("a snapshot's L1 table is at \(l1TableOffset.hex), inside of a cluster")
        }
        guard UInt64(l1EntryCount) * 8 <= UInt64(FormatLimits.l1TableByteCount) else {
            throw .unsupported("a snapshot's L1 table has \(l1EntryCount) entries; at most \(FormatLimits.l1TableByteCount / 8)")
        }
        let end = extra + extraCount + idCount + nameCount
        // The last entry of a table may come without its padding.
        position = min((end + 7) & ~7, table.byteCount)
    }

    /// The entry as it stands in the table, with its padding. Version 3 wants both sizes in the extra data, so they are always there.
    ///
    /// - Precondition: id and name have at most 65535 bytes.
    public var encoded: [UInt8] {
        var extra = ByteBuilder()
        extra.append(stateByteCount)
        // Bytes that we do not know keep their distance from the start: what stands before them is there, or they would not be.
        if let virtualByteCount { extra.append(virtualByteCount) }
        if virtualByteCount != nil, let instructionCount { extra.append(instructionCount) }
        extra.append(contentsOf: unknownExtra)
        var out = ByteBuilder()
        out.append(l1TableOffset)
        out.append(l1EntryCount)
        out.append(UInt16(id.count))
        out.append(UInt16(name.count))
        out.append(seconds)
        out.append(nanoseconds)
        out.append(guestNanoseconds)
        out.append(UInt32(truncatingIfNeeded: stateByteCount > UInt64(UInt32.max) ? 0 : stateByteCount))
        out.append(UInt32(extra.bytes.count))
        out.append(contentsOf: extra.bytes)
        out.append(contentsOf: id)
        out.append(contentsOf: name)
        out.pad(toMultipleOf: 8)
        return out.bytes
    }

    private static var truncated: FormatError { .corrupt("the snapshot table ends in the middle of an entry") }

    /// Reads a whole table of `count` entries from the front of `table`. Bytes behind them are ignored. `consumed` is the table's length.
    public static func decodeTable(_ table: RawSpan, count: Int, in geometry: ImageGeometry) throws(FormatError) -> (
        entries: [SnapshotEntry], consumed: Int
    ) {
        var entries: [SnapshotEntry] = []
        var position = 0
        while entries.count < count {
            let entry = try SnapshotEntry(decoding: table, at: &position, in: geometry)
            entries.append(entry)
        }
        return (entries, position)
    }
}
