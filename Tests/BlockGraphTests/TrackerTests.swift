import Block
import BlockDeviceConformance
import BlockDrivers
import BlockGraph
import Testing

private func range(_ start: UInt64, _ count: UInt64) -> ByteRange { ByteRange(start: start, count: count) ?? ByteRange(ofDevice: 0) }

extension BlockDevice {
    fileprivate func write(at offset: UInt64, _ bytes: [UInt8]) async throws(BlockError) {
        try await write(at: offset, from: bytes.span.bytes, [])
    }
}

@Suite struct `A bitmap tracker` {
    @Test func `obeys the laws of a device`() async throws {
        try await checkConformance { BitmapTracker(MemoryDevice(byteCount: 1 << 20)) }
    }

    // S-BLK-23
    @Test func `records writes, zeroes and discards, and nothing else`() async throws {
        let tracker = BitmapTracker(MemoryDevice(byteCount: 1 << 20))
        let bitmap = try tracker.addBitmap("b", granularity: 4096)
        try await tracker.write(at: 10, [UInt8](repeating: 7, count: 10))
        try await tracker.writeZeroes(range(8192, 4096), [])
        try await tracker.discard(range(16384, 4096))
        try await tracker.flush()
        try await tracker.prefetch(range(0, 1 << 20))
        #expect(bitmap.dirtyByteCount == 3 * 4096)
        #expect(bitmap.nextDirtyArea(in: range(0, 1 << 20)) == range(0, 4096))
        #expect(bitmap.nextDirtyArea(in: range(4096, 1 << 19)) == range(8192, 4096))
        #expect(bitmap.nextDirtyArea(in: range(12288, 1 << 19)) == range(16384, 4096))
    }

    // S-BLK-23: after a failed write its range holds old, new or mixed bytes
    @Test func `records requests that failed, but no refusal to be slow`() async throws {
        let faults = Faults(MemoryDevice(byteCount: 1 << 20))
        let tracker = BitmapTracker(faults)
        let bitmap = try tracker.addBitmap("b", granularity: 4096)
        faults.setRules([.init([.write, .discard], error: BlockError(.inputOutput, "broken"))])
        await #expect(throws: BlockError.self) { try await tracker.write(at: 0, [UInt8](repeating: 7, count: 10)) }
        await #expect(throws: BlockError.self) { try await tracker.discard(range(4096, 10)) }
        #expect(bitmap.dirtyByteCount == 8192)
        faults.setRules([.init([.writeZeroes], error: BlockError(.unsupported, "slow"))])
        await #expect(throws: BlockError.self) { try await tracker.writeZeroes(range(65536, 10), .fast) }
        #expect(bitmap.dirtyByteCount == 8192)
    }

    // S-BLK-23
    @Test func `records mapped writes in every bitmap, also one that was added later`() throws {
        let tracker = BitmapTracker(NullDevice(byteCount: 1 << 20))
        let first = try tracker.addBitmap("first", granularity: 4096)
        let mapper = try #require(tracker.makeMapper())
        #expect(!mapper.placesAreFixed, "as what is below says")
        mapper.didWrite(range(0, 1))
        let second = try tracker.addBitmap("second", granularity: 4096)
        mapper.didWrite(range(4096, 1))
        #expect(first.dirtyByteCount == 8192)
        #expect(second.dirtyByteCount == 4096)
        try tracker.removeBitmap("first")
        mapper.didWrite(range(8192, 1))
        #expect(first.dirtyByteCount == 8192)
        #expect(tracker.bitmaps.map(\.name) == ["second"])
    }

    @Test func `keeps bitmaps apart by name, and those that are used`() throws {
        let tracker = BitmapTracker(NullDevice(byteCount: 1 << 20))
        let bitmap = try tracker.addBitmap("b")
        #expect(throws: BitmapError.self) { try tracker.addBitmap("b") }
        try bitmap.beginUse(by: "export 'disk'")
        #expect { try tracker.removeBitmap("b") } throws: { ($0 as? BitmapError)?.reason == .busy }
        #expect { try tracker.removeBitmap("c") } throws: { ($0 as? BitmapError)?.reason == .notFound }
    }
}

@Suite struct `A window on extents` {
    @Test func `shows what lies behind it`() async throws {
        let bitmap = try DirtyBitmap("b", byteCount: 1 << 20, granularity: 4096)
        bitmap.record(range(8192, 1))
        var list = ExtentList(byteCountLimit: 10_000)
        try await WindowedExtents(bitmap, offset: 4096).extents(of: range(0, 10_000), into: &list)
        #expect(list.extents == [Extent(4096, []), Extent(4096, .dirty), Extent(1808, [])])
    }
}
