extension ImageHeader {
    /// How many bytes at the front of a file are enough to read any header.
    public static let largestByteCount = 1 << ImageGeometry.clusterBitsRange.upperBound
    /// How many bytes at the front of a file tell, to `byteCountToRead`, how many the header needs.
    public static let probeByteCount = 24

    /// Whether a file that starts with these bytes says of itself that it is a qcow2 image.
    public static func isImage(_ front: RawSpan) -> Bool {
        front.byteCount >= 8 && front.bigEndian(at: 0) == magic && front.bigEndian(UInt32.self, at: 4) >= 2
    }

    /// How many bytes of the file `init(decoding:)` needs: its first cluster. The file may be shorter.
    public static func byteCountToRead(_ front: RawSpan) throws(FormatError) -> Int {
        1 << (try clusterBits(front))
    }

    private static func clusterBits(_ front: RawSpan) throws(FormatError) -> Int {
        guard front.byteCount >= 4, front.bigEndian(at: 0) == magic else {
            throw FormatError(.notAnImage, "not a qcow2 image: it does not start with QFI\\xfb")
        }
        guard front.byteCount >= probeByteCount else { throw .corrupt("the image ends in the middle of its header") }
        let version: UInt32 = front.bigEndian(at: 4)
        guard version == 2 || version == 3 else { throw .unsupported("version \(version) of the qcow2 format; 2 and 3 are supported") }
        let bits: UInt32 = front.bigEndian(at: 20)
        guard let bits = Int(exactly: bits), ImageGeometry.clusterBitsRange.contains(bits) else {
            throw .unsupported("clusters of 2^\(bits) bytes; 2^9 to 2^21 are supported")
        }
        return bits
    }

    /// Reads a header from the first cluster of an image (`byteCountToRead`), or from the whole of a shorter file.
    ///
    /// Accepts unknown features and encryption, so that they can be told of: see `requireReadable`.
    ///
    /// - Throws: `.notAnImage`; `.unsupported` for other versions and for sizes over `FormatLimits`; `.corrupt` for everything else that
    ///   breaks the format's rules.
    public init(decoding cluster: RawSpan) throws(FormatError) {
        let clusterBits = try Self.clusterBits(cluster)
        let area = cluster.extracting(..<min(cluster.byteCount, 1 << clusterBits))
        guard area.byteCount >= Self.version2ByteCount else { throw .corrupt("the image ends in the middle of its header") }
        let version: UInt32 = area.bigEndian(at: 4)
        let headerByteCount = version == 2 ? Self.version2ByteCount : try Self.headerByteCount(area)
        let incompatible = IncompatibleFeatures(rawValue: version == 2 ? 0 : area.bigEndian(at: 72))
        let order: UInt32 = version == 2 ? 4 : area.bigEndian(at: 96)
        guard let order = Int(exactly: order), ImageGeometry.refcountOrderRange.contains(order) else {
            throw .unsupported("refcounts of 2^\(order) bits; 1 to 64 bits are supported")
        }
        let extended = incompatible.contains(.extendedL2)
        guard let geometry = ImageGeometry(clusterBits: clusterBits, refcountOrder: order, hasExtendedL2: extended) else {
            throw .corrupt("extended L2 entries in clusters of 2^\(clusterBits) bytes; they need 2^14")
        }
        self.init(version: version, geometry: geometry, virtualByteCount: area.bigEndian(at: 24))
        guard let encryption = Encryption(rawValue: area.bigEndian(at: 32)) else {
            throw .unsupported("unknown encryption method \(area.bigEndian(UInt32.self, at: 32))")
        }
        self.encryption = encryption
        l1EntryCount = area.bigEndian(at: 36)
        l1TableOffset = area.bigEndian(at: 40)
        refcountTableOffset = area.bigEndian(at: 48)
        refcountTableClusterCount = area.bigEndian(at: 56)
        snapshotCount = area.bigEndian(at: 60)
        snapshotTableOffset = area.bigEndian(at: 64)
        incompatibleFeatures = incompatible
        if version == 3 {
            compatibleFeatures = CompatibleFeatures(rawValue: area.bigEndian(at: 80))
            autoclearFeatures = AutoclearFeatures(rawValue: area.bigEndian(at: 88))
        }
        compression = try Self.compression(area, headerByteCount, incompatible)
        if headerByteCount > 112 { unknownFields = area.bytes(at: 112, count: headerByteCount - 112) }
        try checkTables()
        let backing = try Self.backingFile(area, headerByteCount)
        backingFileName = backing.map { area.bytes(at: $0.offset, count: $0.byteCount) }
        extensions = try Self.extensions(area, from: headerByteCount, to: backing?.offset ?? area.byteCount, in: geometry)
    }

    private static func headerByteCount(_ area: RawSpan) throws(FormatError) -> Int {
        guard area.byteCount >= version3ByteCount else { throw .corrupt("the image ends in the middle of its header") }
        let count: UInt32 = area.bigEndian(at: 100)
        guard count >= UInt32(version3ByteCount), count % 8 == 0 else {
            throw .corrupt("a header of \(count) bytes; at least \(version3ByteCount) and a multiple of 8 are needed")
        }
        guard count <= UInt32(area.byteCount) else {
            throw .corrupt("a header of \(count) bytes goes beyond the first cluster or the file")
        }
        return Int(count)
    }

    private static func compression(_ area: RawSpan, _ headerByteCount: Int, _ features: IncompatibleFeatures) throws(FormatError)
        -> CompressionType
    {
        let value: UInt8 = headerByteCount > version3ByteCount ? area.bigEndian(at: 104) : 0
        guard let type = CompressionType(rawValue: value) else { throw .unsupported("unknown compression type \(value)") }
        guard features.contains(.compressionType) == (type != .zlib) else {
            throw .corrupt("the compression type \(type.name) and the feature bit for it do not agree")
        }
        return type
    }

    /// The rules of the fields that say where tables are.
    private func checkTables() throws(FormatError) {
        guard virtualByteCount <= FormatLimits.virtualByteCount else {
            throw .unsupported("a disk of \(virtualByteCount) bytes; at most 2^63 - 1")
        }
        try checkOffset(l1TableOffset, "L1 table")
        try checkOffset(refcountTableOffset, "refcount table")
        guard l1TableByteCount <= UInt64(FormatLimits.l1TableByteCount) else {
            throw .unsupported("an L1 table of \(l1EntryCount) entries; at most \(FormatLimits.l1TableByteCount / 8)")
        }
        guard geometry.l1EntryCount(for: virtualByteCount) <= UInt64(l1EntryCount) else {
            throw .corrupt("an L1 table of \(l1EntryCount) entries is too small for a disk of \(virtualByteCount) bytes")
        }
        guard refcountTableByteCount <= UInt64(FormatLimits.refcountTableByteCount) else {
            throw .unsupported("a refcount table of \(refcountTableClusterCount) clusters; at most 8 MiB")
        }
        guard snapshotCount <= UInt32(FormatLimits.snapshotCount) else {
            throw .unsupported("\(snapshotCount) snapshots; at most \(FormatLimits.snapshotCount)")
        }
        if snapshotCount > 0 { try checkOffset(snapshotTableOffset, "snapshot table") }
    }

    private func checkOffset(_ offset: UInt64, _ table: String) throws(FormatError) {
        guard geometry.isAligned(offset) else { throw .corrupt("the \(table) is at \(offset.hex), inside of a cluster") }
        guard offset <= FormatLimits.virtualByteCount - UInt64(FormatLimits.l1TableByteCount) else {
            throw .corrupt("the \(table) is at \(offset.hex), beyond any file")
        }
    }

    private static func backingFile(_ area: RawSpan, _ headerByteCount: Int) throws(FormatError) -> (offset: Int, byteCount: Int)? {
        let offset: UInt64 = area.bigEndian(at: 8)
        let byteCount: UInt32 = area.bigEndian(at: 16)
        guard offset != 0 else { return nil }
        guard offset >= UInt64(headerByteCount), offset <= UInt64(area.byteCount) else {
            throw .corrupt("the name of the backing file is at \(offset.hex), outside of the first cluster or inside of the header")
        }
        guard byteCount <= UInt32(FormatLimits.backingFileNameByteCount), UInt64(byteCount) <= UInt64(area.byteCount) - offset else {
            throw .corrupt("the name of the backing file has \(byteCount) bytes; at most 1023, and all in the first cluster")
        }
        return (Int(offset), Int(byteCount))
    }

    /// The sections from the end of the header to the name of the backing file or the end of the cluster.
    private static func extensions(_ area: RawSpan, from start: Int, to end: Int, in geometry: ImageGeometry) throws(FormatError)
        -> [HeaderExtension]
    {
        var found: [HeaderExtension] = []
        var types: Set<UInt32> = []
        var position = start
        while end - position >= 8 {
            let type: UInt32 = area.bigEndian(at: position)
            let count: UInt32 = area.bigEndian(at: position + 4)
            position += 8
            if type == HeaderExtension.endType { break }
            guard count <= UInt32(end - position) else {
                throw .corrupt("header extension 0x\(String(type, radix: 16)) has \(count) bytes, \(end - position) are left")
            }
            let data = area.bytes(at: position, count: Int(count))
            let section = try HeaderExtension(type: type, data: data, in: geometry)
            if case .unknown = section {
            } else {
                guard types.insert(type).inserted else { throw .corrupt("header extension 0x\(String(type, radix: 16)) appears twice") }
            }
            found.append(section)
            position = min(position + (Int(count) + 7) & ~7, end)
        }
        return found
    }
}
