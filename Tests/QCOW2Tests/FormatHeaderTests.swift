import Block
import QCOW2
import Testing

@Suite struct `Image header` {
    static let images: [(hex: String, clusterByteCount: Int)] = [
        (Golden.version2, 4096), (Golden.version3, 65536), (Golden.dataFile, 65536), (Golden.bitmaps, 512),
    ]

    @Test(arguments: images)
    func `of qemu-img is written back byte for byte`(hex: String, clusterByteCount: Int) throws {
        let cluster = bytes(hex, paddedTo: clusterByteCount)
        #expect(try ImageHeader.byteCountToRead(cluster.rawBytes) == clusterByteCount)
        let header = try ImageHeader(decoding: cluster.rawBytes)
        try header.requireReadable()
        #expect(try header.encoded() == cluster)
    }

    @Test func `of version 2 has the old defaults`() throws {
        let header = try decode(Golden.version2, 4096)
        #expect(header.version == 2 && header.virtualByteCount == 3 << 20 && header.l1EntryCount == 2)
        #expect(header.l1TableOffset == 0x3000 && header.refcountTableOffset == 0x1000 && header.refcountTableClusterCount == 1)
        #expect(header.geometry == geometry(12) && header.compression == .zlib && header.backingFileName == nil)
        #expect(header.extensions.isEmpty)
    }

    @Test func `of version 3 tells all its features`() throws {
        let header = try decode(Golden.version3, 65536)
        #expect(header.incompatibleFeatures == [.compressionType, .extendedL2])
        #expect(header.compatibleFeatures == .lazyRefcounts && header.compression == .zstd)
        #expect(header.geometry == geometry(16, order: 0, extended: true))
        #expect(header.backingFileName == Array("base.raw".utf8) && header.backingFormat == Array("raw".utf8))
        #expect(header.featureNames == FeatureName.all)
        #expect(try decode(Golden.dataFile, 65536).dataFileName == Array("d.raw".utf8))
        #expect(try decode(Golden.dataFile, 65536).hasRawDataFile)
        #expect(
            try decode(Golden.bitmaps, 512).bitmaps
                == BitmapsExtension(bitmapCount: 2, directoryByteCount: 64, directoryOffset: 0x1200))
    }

    @Test func `keeps what it does not know`() throws {
        var header = try decode(Golden.version3, 65536)
        header.unknownFields = [1, 2, 3, 4, 5, 6, 7, 8]
        header.extensions.insert(.unknown(type: 0x1234_5678, data: [9, 8, 7]), at: 1)
        header.compatibleFeatures.insert(CompatibleFeatures(rawValue: 1 << 40))
        header.autoclearFeatures.insert(AutoclearFeatures(rawValue: 1 << 41))
        let encoded = try header.encoded()
        #expect(try ImageHeader(decoding: encoded.rawBytes) == header)
    }

    @Test func `refuses an unknown feature by the name that the image gives it`() throws {
        var header = try decode(Golden.version3, 65536)
        header.incompatibleFeatures.insert(IncompatibleFeatures(rawValue: 1 << 20 | 1 << 63))
        header.extensions = [.featureNames([FeatureName(.incompatible, bit: 20, "time travel")])]
        let error = #expect(throws: FormatError.self) { try header.requireReadable() }
        #expect(error?.kind == .unsupported)
        #expect(error?.detail.hasSuffix("time travel, unknown feature (bit 63)") == true)
    }

    @Test(arguments: [(1, "AES"), (2, "LUKS")] as [(UInt8, String)])
    func `refuses encryption`(method: UInt8, name: String) throws {
        var cluster = bytes(Golden.version2, paddedTo: 4096)
        cluster[35] = method
        let header = try ImageHeader(decoding: cluster.rawBytes)
        let error = #expect(throws: FormatError.self) { try header.requireReadable() }
        #expect(error?.detail.contains(name) == true)
    }

    /// (field, offset, bytes): each of them alone makes the version 3 image unusable.
    static let broken: [(String, Int, [UInt8])] = [
        ("magic", 0, [0]), ("version", 7, [4]), ("version", 7, [1]), ("backing name beyond the cluster", 8, [1]),
        ("backing name inside the header", 14, [0, 0x10]), ("backing name too long", 16, [0, 0, 4, 0]),
        ("backing name over the end", 12, [0, 0, 0xff, 0xff]), ("cluster bits", 20, [0xff]), ("cluster bits", 23, [8]),
        ("cluster bits", 23, [22]), ("extended entries in small clusters", 23, [13]), ("size", 24, [0xff]),
        ("L1 too small for the size", 24, [0, 1]), ("encryption", 35, [3]), ("L1 size", 36, [0xff]), ("L1 offset", 46, [2]),
        ("L1 offset", 40, [0xff, 0xff]), ("refcount table offset", 54, [2]), ("refcount table size", 56, [1]),
        ("snapshots", 60, [1]), ("compression bit without type", 104, [0]), ("compression type", 104, [2]),
        ("type without compression bit", 79, [0x10]), ("refcount order", 99, [7]), ("refcount order", 96, [0x80]),
        ("header length", 103, [0x60]), ("header length", 103, [0x71]), ("header length", 100, [0xff]),
        ("extension length", 116, [0xff]), ("backing format length", 119, [16]),
    ]

    @Test(arguments: broken)
    func `with one broken field is refused`(field: String, offset: Int, replacement: [UInt8]) {
        var cluster = bytes(Golden.version3, paddedTo: 65536)
        cluster.replaceSubrange(offset..<offset + replacement.count, with: replacement)
        #expect(throws: FormatError.self, "\(field)") { try ImageHeader(decoding: cluster.rawBytes) }
    }

    @Test(arguments: images)
    func `cut or changed at any byte leads to an error or a header, never a trap`(hex: String, clusterByteCount: Int) {
        let front = bytes(hex)
        for count in front.indices { _ = try? ImageHeader(decoding: Array(front.prefix(count)).rawBytes) }
        for index in front.indices {
            for value in [0, 1, 0x7f, 0x80, 0xff] as [UInt8] {
                var changed = front
                changed[index] = value
                if let header = try? ImageHeader(decoding: changed.rawBytes) {
                    _ = try? header.requireReadable()
                    if header.clusterByteCount <= 4096 { _ = try? header.encoded() }
                }
            }
        }
    }

    @Test func `does not encode what does not fit`() throws {
        var header = try decode(Golden.bitmaps, 512)
        header.backingFileName = Array(repeating: 0x61, count: 400)
        #expect(throws: FormatError.self) { try header.encoded() }
    }

    func decode(_ hex: String, _ clusterByteCount: Int) throws -> ImageHeader {
        try ImageHeader(decoding: bytes(hex, paddedTo: clusterByteCount).rawBytes)
    }
}

@Suite struct `Snapshot table` {
    @Test func `of qemu-img is written back byte for byte`() throws {
        let table = bytes(Golden.snapshots)
        let (entries, consumed) = try SnapshotEntry.decodeTable(table.rawBytes, count: 1, in: geometry(9))
        let entry = try #require(entries.first)
        #expect(entry.name == Array("before".utf8) && entry.id == [0x31])
        #expect(entry.l1TableOffset == 0x800 && entry.l1EntryCount == 2 && entry.virtualByteCount == 65536)
        #expect(entry.encoded == table + [0] && consumed == table.count)
    }

    @Test func `keeps extra data of any length`() throws {
        for count in [0, 8, 12, 16, 20, 24, 40] {
            var raw = bytes(Golden.snapshots)
            raw[39] = UInt8(count)
            raw.replaceSubrange(40..<64, with: (0..<UInt8(count)).map { $0 + 1 })
            let entry = try #require(try SnapshotEntry.decodeTable(raw.rawBytes, count: 1, in: geometry(9)).entries.first)
            let again = try SnapshotEntry.decodeTable(entry.encoded.rawBytes, count: 1, in: geometry(9)).entries.first
            #expect(again == entry && entry.name == Array("before".utf8))
        }
    }

    @Test func `cut at any byte, or with an absurd size, is refused`() {
        let table = bytes(Golden.snapshots)
        for count in 0..<71 {
            #expect(throws: FormatError.self) {
                try SnapshotEntry.decodeTable(Array(table.prefix(count)).rawBytes, count: 1, in: geometry(9))
            }
        }
        for (offset, value) in [(6, 1), (8, 0xff), (12, 0xff), (14, 0xff), (36, 0xff), (38, 5)] as [(Int, UInt8)] {
            var bad = table
            bad[offset] = value
            #expect(throws: FormatError.self) { try SnapshotEntry.decodeTable(bad.rawBytes, count: 1, in: geometry(9)) }
        }
    }
}

@Suite struct `Bitmap directory` {
    @Test func `of qemu-img is written back byte for byte`() throws {
        let directory = bytes(Golden.bitmapDirectory)
        let entries = try BitmapDirectoryEntry.decodeDirectory(directory.rawBytes, count: 2, in: geometry(9))
        #expect(entries.map { String(decoding: $0.name, as: UTF8.self) } == ["first", "second"])
        #expect(entries.map(\.granularityBits) == [12, 9] && entries.map(\.flags) == [.auto, []])
        #expect(entries.flatMap(\.encoded) == directory)
    }

    @Test func `cut, with room to spare, a name twice or a broken field is refused`() {
        let directory = bytes(Golden.bitmapDirectory)
        for count in 0..<directory.count - 2 { expectRefusal(Array(directory.prefix(count))) }
        expectRefusal(directory + [0, 0, 0, 0, 0, 0, 0, 0])
        expectRefusal(Array(directory.prefix(32)) + Array(directory.prefix(32)))
        let changes: [(Int, UInt8)] = [
            (7, 1), (6, 0), (8, 0xff), (11, 0), (15, 8), (16, 2), (17, 8), (17, 32), (19, 0), (18, 4), (20, 0xff),
        ]
        for (offset, value) in changes {
            var bad = directory
            bad[offset] = value
            expectRefusal(bad)
        }
    }

    @Test func `asks for as many table entries as the disk needs bits`() {
        #expect(BitmapDirectoryEntry.tableEntryCount(for: 1 << 20, granularityBits: 9, in: geometry(9)) == 1)
        #expect(BitmapDirectoryEntry.tableEntryCount(for: (512 * 8 << 9) + 1, granularityBits: 9, in: geometry(9)) == 2)
        #expect(BitmapDirectoryEntry.tableEntryCount(for: .max >> 1, granularityBits: 9, in: geometry(21)) == nil)
        #expect(BitmapDirectoryEntry.tableEntryCount(for: .max, granularityBits: 64, in: geometry(21)) == nil)
    }

    func expectRefusal(_ directory: [UInt8]) {
        #expect(throws: FormatError.self) { try BitmapDirectoryEntry.decodeDirectory(directory.rawBytes, count: 2, in: geometry(9)) }
    }
}

@Suite struct `Compressed clusters` {
    @Test(arguments: CompressionType.allCases, [512, 65536, 2 << 20])
    func `come back whole, whatever follows them`(type: CompressionType, byteCount: Int) throws {
        let cluster = (0..<byteCount).map { UInt8(truncatingIfNeeded: $0 / 100) }
        var packed = [UInt8](repeating: 0xee, count: byteCount)
        var packedSpan = packed.mutableSpan
        var packedBytes = packedSpan.mutableBytes
        let count = try #require(type.shrink(cluster.rawBytes, into: &packedBytes))
        #expect(count < byteCount)
        #expect(try expand(type, packed, byteCount) == cluster)
        #expect(throws: FormatError.self) { try expand(type, Array(packed.prefix(count / 2)), byteCount) }
    }

    @Test(arguments: CompressionType.allCases)
    func `that are noise are refused, and noise does not become smaller`(type: CompressionType) {
        var state: UInt64 = 1
        let noise = (0..<4096).map { _ in
            state = state &* 6_364_136_223_846_793_005 &+ 1
            return UInt8(truncatingIfNeeded: state >> 56)
        }
        #expect(throws: FormatError.self) { try expand(type, noise, 65536) }
        var room = [UInt8](repeating: 0, count: 4095)
        var roomSpan = room.mutableSpan
        var roomBytes = roomSpan.mutableBytes
        #expect(type.shrink(noise.rawBytes, into: &roomBytes) == nil)
    }

    func expand(_ type: CompressionType, _ packed: [UInt8], _ byteCount: Int) throws -> [UInt8] {
        var cluster = [UInt8](repeating: 0, count: byteCount)
        var span = cluster.mutableSpan
        var bytes = span.mutableBytes
        try type.expand(packed.rawBytes, into: &bytes)
        return cluster
    }
}
