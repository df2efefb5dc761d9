import Block
import QCOW2
import Testing

@Suite struct `Bitmaps of an image` {
    let first = Array("first".utf8)
    let second = Array("second".utf8)

    @Test func `are added, switched, cleared and removed without a lost cluster`() async throws {
        let (device, image) = try await mappedImage(byteCount: 1 << 20)
        try await image.addBitmap(first, granularity: 512)
        try await image.addBitmap(second, isEnabled: false)
        #expect(try await isSound(device))
        await #expect(throws: ImageError.self) { try await image.addBitmap(first) }
        var stored = try await ImageFile.open(device).bitmaps()
        #expect(stored.map(\.name) == [first, second] && stored.map(\.flags) == [.auto, []] && stored.map(\.granularityBits) == [9, 12])
        try await image.setBitmap(first, isEnabled: false)
        try await image.setBitmap(second, isEnabled: true)
        stored = try await ImageFile.open(device).bitmaps()
        #expect(stored.map(\.flags) == [[], .auto])
        try await image.clearBitmap(first)
        try await image.removeBitmap(first)
        #expect(try await isSound(device))
        try await image.removeBitmap(second)
        #expect(try await isSound(device))
        let header = try await ImageFile.open(device).header
        #expect(header.bitmaps == nil && !header.autoclearFeatures.contains(.bitmaps))
    }

    @Test(arguments: [512, 4096, 65536] as [UInt64], [512, 4096, 65536] as [UInt64])
    func `are merged whatever their granularities`(from: UInt64, to: UInt64) async throws {
        let (device, image) = try await mappedImage(byteCount: 1 << 20)
        try await image.addBitmap(first, granularity: from)
        try await image.addBitmap(second, granularity: to)
        try await setBit(3, of: 0, device)
        let again = try await ImageFile.open(device)
        try await again.mergeBitmap(first, into: second)
        #expect(try await isSound(device))
        let merged = try await again.bitmapBits(second)
        let set = (0..<(1 << 20) / to).filter { merged.contains($0 * to) }
        #expect(set == Array(3 * from / to...(4 * from - 1) / to))
    }

    @Test func `that are inconsistent can only be removed`() async throws {
        let (device, image) = try await mappedImage(byteCount: 1 << 20)
        try await image.addBitmap(first)
        let directory = try #require(image.header.bitmaps).directoryOffset
        device.poke(UInt32(3), at: directory + 12)
        await #expect(throws: ImageError.self) { try await image.clearBitmap(first) }
        await #expect(throws: ImageError.self) { try await image.bitmapBits(first) }
        try await image.removeBitmap(first)
        #expect(try await isSound(device))
    }

    /// Gives the bitmap a cluster of data with one bit.
    func setBit(_ bit: UInt64, of index: Int, _ device: ToolsDevice) async throws {
        let bitmap = try await ImageFile.open(device).bitmaps()[index]
        // All ones where the bitmap says so would be too many: a cluster at the end of the file.
        let place = (device.currentByteCount + 511) / 512 * 512
        try await device.write(at: place, from: ([UInt8(1) << UInt8(bit)] + [UInt8](repeating: 0, count: 511)).rawBytes, [])
        device.poke(place, at: bitmap.tableOffset)
        _ = try await ImageFile.open(device).check(repair: .all)
    }
}

@Suite struct `Resizing an image` {
    @Test(arguments: [0, 4, 6], [false, true])
    func `keeps it without faults`(order: Int, hasBitmaps: Bool) async throws {
        let (device, image) = try await mappedImage(byteCount: 64 << 10) { $0.refcountBitCount = 1 << order }
        if hasBitmaps { try await image.addBitmap(Array("b".utf8), granularity: 512) }
        for byteCount in [64 << 10, (64 << 10) + 512, 2 << 20, 5 << 20, 33 << 10, 512, 100_000] as [UInt64] {
            try await image.resize(to: byteCount, mayShrink: true)
            #expect(try await isSound(device), "\(byteCount) bytes")
            let again = try await ImageFile.open(device)
            #expect(again.header.virtualByteCount == (byteCount + 511) / 512 * 512)
            #expect(try await again.bitmaps().count == (hasBitmaps ? 1 : 0))
            if hasBitmaps { #expect(try await again.bitmapBits(Array("b".utf8)).virtualByteCount == again.header.virtualByteCount) }
        }
    }

    @Test func `makes the refcount table longer when it is full`() async throws {
        let (device, image) = try await mappedImage(byteCount: 1 << 20) { $0.refcountBitCount = 64 }
        // An L1 table of 8192 clusters; 64 blocks of 64 refcounts count half as many.
        try await image.resize(to: 16 << 30)
        #expect(image.header.refcountTableClusterCount > 1)
        #expect(try await isSound(device))
    }

    @Test func `needs permission to lose data`() async throws {
        let (device, image) = try await mappedImage()
        await #expect(throws: ImageError.self) { try await image.resize(to: 512) }
        #expect(try await ImageFile.open(device).header.virtualByteCount == 64 << 10)
    }

    @Test func `gives the space behind the new end back`() async throws {
        let (device, image) = try await mappedImage(byteCount: 1 << 20)
        let before = device.currentByteCount
        try await image.resize(to: 512, mayShrink: true)
        #expect(device.currentByteCount < before / 4)
    }
}

@Suite struct `Snapshots of an image` {
    @Test func `are taken, applied and deleted without a fault`() async throws {
        let (device, image) = try await mappedImage()
        let id = try await image.createSnapshot(Array("one".utf8), time: (1, 2))
        #expect(id == Array("1".utf8))
        #expect(try await isSound(device))
        // A write after the snapshot: a cluster of its own, as a server would give it.
        try await image.createSnapshot(Array("two".utf8), time: (3, 4))
        #expect(try await image.snapshots().map(\.name) == [Array("one".utf8), Array("two".utf8)])
        #expect(try await isSound(device))
        try await image.applySnapshot(Array("one".utf8))
        #expect(try await isSound(device))
        try await image.deleteSnapshot(named: Array("one".utf8))
        #expect(try await isSound(device))
        try await image.deleteSnapshot(named: Array("two".utf8))
        #expect(try await isSound(device))
        #expect(try await image.check().allocatedClusterCount == 128)
    }

    @Test func `are deleted by name alone, and applied by id before name`() async throws {
        let (device, image) = try await mappedImage()
        for name in ["0", "1", "2", "1"] { try await image.createSnapshot(Array(name.utf8), time: (1, 2)) }
        await #expect(throws: ImageError.self) { try await image.deleteSnapshot(named: Array("3".utf8)) }
        await #expect(throws: ImageError.self) { try await image.applySnapshot(Array("9".utf8)) }
        try await image.applySnapshot(Array("4".utf8))
        try await image.deleteSnapshot(named: Array("1".utf8))
        #expect(try await image.snapshots().map(\.id) == ["1", "3", "4"].map { Array($0.utf8) })
        #expect(try await isSound(device))
    }

    /// Flags as they are stored: disabled, inconsistent, enabled, and enabled but inconsistent.
    @Test(arguments: [0, 1, 2, 3] as [UInt32])
    func `are not applied while there are bitmaps`(flags: UInt32) async throws {
        let (device, image) = try await mappedImage()
        try await image.createSnapshot(Array("one".utf8), time: (1, 2))
        try await image.addBitmap(Array("backup".utf8))
        device.poke(flags, at: try #require(image.header.bitmaps).directoryOffset + 12)
        let before = device.bytes
        let error = try await #require(throws: ImageError.self) { try await image.applySnapshot(Array("one".utf8)) }
        #expect(error.description.contains("\"backup\""))
        #expect(device.bytes == before)
        try await image.removeBitmap(Array("backup".utf8))
        try await image.applySnapshot(Array("one".utf8))
        #expect(try await isSound(device))
    }

    @Test func `that one-bit refcounts cannot count are refused, and nothing is changed`() async throws {
        let (device, image) = try await mappedImage { $0.refcountBitCount = 1 }
        await #expect(throws: ImageError.self) { try await image.createSnapshot(Array("one".utf8), time: (1, 2)) }
        #expect(try await ImageFile.open(device).snapshots().isEmpty)
        #expect(try await ImageFile.open(device).check().corruptionCount == 0)
    }
}

@Suite struct `Compressed writing` {
    /// Narrow refcounts cannot count all clusters that would fit in a host cluster.
    @Test(arguments: [(9, 16), (12, 16), (16, 16), (9, 1), (12, 1), (12, 2), (16, 2), (16, 4)], CompressionType.allCases)
    func `gives an image without faults`(sizes: (bits: Int, refcountBits: Int), type: CompressionType) async throws {
        let bits = sizes.bits
        let (device, image) = try await mappedImage(byteCount: 1 << 20) { options in
            options.clusterByteCount = 1 << bits
            options.preallocation = .off
            options.compression = type
            options.refcountBitCount = sizes.refcountBits
        }
        let writer = try await CompressedWriter(image)
        let cluster = [UInt8](repeating: 7, count: 1 << bits)
        var room = [UInt8](repeating: 0, count: cluster.count)
        var span = room.mutableSpan
        var bytes = span.mutableBytes
        let count = try #require(type.shrink(cluster.rawBytes, into: &bytes))
        for offset in stride(from: 0, to: 1 << 20, by: 2 << bits) as StrideTo<Int> {
            try await writer.write(offset % (6 << bits) == 0 ? nil : Array(room[..<count]), of: cluster, at: UInt64(offset))
        }
        try await writer.finish()
        #expect(try await isSound(device))
        let report = try await image.check()
        #expect(report.compressedClusterCount > 0 && report.allocatedClusterCount == 1 << (20 - bits) / 2)
        #expect(!image.header.incompatibleFeatures.contains(.dirty))
    }
}
