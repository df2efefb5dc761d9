import Testing

@testable import Block

@Suite struct `A dirty bitmap` {
    private static func range(_ start: UInt64, _ count: UInt64) -> ByteRange {
        ByteRange(start: start, count: count) ?? ByteRange(ofDevice: 0)
    }

    private static func extents(_ bitmap: DirtyBitmap, _ range: ByteRange, limit: Int = 131_072) async throws -> [Extent] {
        var list = ExtentList(byteCountLimit: range.count, extentCountLimit: limit)
        try await bitmap.extents(of: range, into: &list)
        return list.extents
    }

    // S-BST-09, S-BST-10, S-BLK-14
    @Test func `tells dirty blocks at its granularity, cut to what was asked`() async throws {
        let bitmap = try DirtyBitmap("b", byteCount: 1_000_000, granularity: 4096)
        bitmap.record(Self.range(5000, 1))
        bitmap.record(Self.range(8191, 2))
        bitmap.record(Self.range(999_999, 1))
        #expect(
            try await Self.extents(bitmap, ByteRange(ofDevice: 1_000_000))
                == [Extent(4096, []), Extent(8192, .dirty), Extent(999_424 - 12288, []), Extent(576, .dirty)])
        #expect(try await Self.extents(bitmap, Self.range(4097, 100)) == [Extent(100, .dirty)])
        #expect(try await Self.extents(bitmap, Self.range(4000, 200)) == [Extent(96, []), Extent(104, .dirty)])
        #expect(try await Self.extents(bitmap, Self.range(4000, 200), limit: 1) == [Extent(96, [])])
        #expect(bitmap.dirtyByteCount == 8192 + 576)
    }

    @Test(arguments: [512, 65536, 2 << 30] as [UInt64])
    func `of the largest device takes marks anywhere, and little memory`(granularity: UInt64) async throws {
        let size = UInt64(Int64.max)
        let bitmap = try DirtyBitmap("b", byteCount: size, granularity: granularity)
        bitmap.record(Self.range(0, 1))
        bitmap.record(Self.range(size / 2, 1))
        bitmap.record(Self.range(size - 1, 1))
        let extents = try await Self.extents(bitmap, ByteRange(ofDevice: size))
        #expect(extents.map(\.status) == [.dirty, [], .dirty, [], .dirty])
        #expect(extents[0].count == granularity)
        #expect(extents.map(\.count).reduce(0, +) == size)
        #expect(bitmap.memoryByteCount < 1 << 20)
        bitmap.record(ByteRange(ofDevice: size))
        #expect(try await Self.extents(bitmap, ByteRange(ofDevice: size)) == [Extent(size, .dirty)])
        #expect(bitmap.dirtyByteCount == size)
        #expect(bitmap.memoryByteCount < 1 << 20)
        try bitmap.clear()
        #expect(try await Self.extents(bitmap, ByteRange(ofDevice: size)) == [Extent(size, [])])
        #expect(bitmap.dirtyByteCount == 0)
    }

    @Test func `equals a set of blocks after any marks`() async throws {
        var random = SeededGenerator()
        for granularity in [512, 4096] as [UInt64] {
            // Three levels of nodes at 512.
            let size: UInt64 = 20 << 30
            let bitmap = try DirtyBitmap("b", byteCount: size, granularity: granularity)
            // Runs of dirty blocks.
            var runs: [(first: UInt64, end: UInt64)] = []
            for _ in 0..<300 {
                let start = UInt64.random(in: 0..<size, using: &random)
                let longest = ([1, 512, 70_000, 300 << 20] as [UInt64]).randomElement(using: &random) ?? 1
                let range = Self.range(start, min(UInt64.random(in: 1...longest, using: &random), size - start))
                bitmap.mark(range)
                runs.append((range.start / granularity, (range.end - 1) / granularity + 1))
            }
            var expected: [Extent] = []
            var position: UInt64 = 0
            for run in runs.sorted(by: { $0.first < $1.first }) where run.end > position {
                let first = max(run.first, position)
                if first > position || expected.isEmpty {
                    if first > position { expected.append(Extent((first - position) * granularity, [])) }
                    expected.append(Extent((run.end - first) * granularity, .dirty))
                } else {
                    expected[expected.count - 1].count += (run.end - first) * granularity
                }
                position = run.end
            }
            if position * granularity < size { expected.append(Extent(size - position * granularity, [])) }
            #expect(try await Self.extents(bitmap, ByteRange(ofDevice: size), limit: .max) == expected, "SEED=\(random.seed)")
            #expect(bitmap.dirtyByteCount == expected.filter { $0.status == .dirty }.map(\.count).reduce(0, +))
        }
    }

    @Test func `says too much rather than too little when its memory is used up`() async throws {
        let size: UInt64 = 1 << 40
        let bitmap = try DirtyBitmap("b", byteCount: size, granularity: 512, isEnabled: true, nodeLimit: 3)
        var random = SeededGenerator()
        let places = (0..<50).map { _ in UInt64.random(in: 0..<size, using: &random) }
        for place in places { bitmap.record(Self.range(place, 1)) }
        for place in places { #expect(bitmap.nextDirtyArea(in: Self.range(place, 1)) != nil, "SEED=\(random.seed)") }
        #expect(bitmap.memoryByteCount <= 4 * 4096)
        #expect(bitmap.dirtyByteCount < size)
    }

    @Test func `is marked by many threads at once`() async throws {
        let size: UInt64 = 64 << 30
        let bitmap = try DirtyBitmap("b", byteCount: size, granularity: 4096)
        await withTaskGroup(of: Void.self) { group in
            for worker in 0..<8 as Range<UInt64> {
                group.addTask {
                    for index in 0..<2000 as Range<UInt64> {
                        let block = index &* 7919 &* 8 &+ worker
                        bitmap.record(Self.range(block % (size / 4096) * 4096, 4096))
                    }
                }
            }
        }
        var model = Set<UInt64>()
        for worker in 0..<8 as Range<UInt64> {
            for index in 0..<2000 as Range<UInt64> { model.insert((index &* 7919 &* 8 &+ worker) % (size / 4096)) }
        }
        #expect(bitmap.dirtyByteCount == UInt64(model.count) * 4096)
    }

    @Test func `records while it is enabled`() throws {
        let bitmap = try DirtyBitmap("b", byteCount: 1 << 20, isEnabled: false)
        bitmap.record(Self.range(0, 1))
        #expect(bitmap.dirtyByteCount == 0)
        try bitmap.enable()
        bitmap.record(Self.range(0, 1))
        try bitmap.disable()
        bitmap.record(Self.range(100_000, 1))
        #expect(bitmap.dirtyByteCount == 65536)
        bitmap.mark(Self.range(1 << 20, 5))
        #expect(bitmap.dirtyByteCount == 65536, "nothing lies behind the end")
    }

    @Test func `takes another one's blocks, of any granularity`() throws {
        let fine = try DirtyBitmap("fine", byteCount: 1 << 20, granularity: 512)
        let coarse = try DirtyBitmap("coarse", byteCount: 1 << 20, granularity: 65536)
        fine.record(Self.range(70_000, 1))
        try coarse.merge(fine)
        #expect(coarse.nextDirtyArea(in: ByteRange(ofDevice: 1 << 20)) == Self.range(65536, 65536))
        try fine.merge(coarse)
        #expect(fine.dirtyByteCount == 65536)
        let other = try DirtyBitmap("other", byteCount: 1 << 21)
        #expect(throws: BitmapError.self) { try fine.merge(other) }
    }

    // S-BST-11, S-EXP-14
    @Test func `that is busy, read-only or inconsistent does not change`() throws {
        let bitmap = try DirtyBitmap("b", byteCount: 1 << 20)
        let other = try DirtyBitmap("o", byteCount: 1 << 20)
        try bitmap.beginUse(by: "export 'disk'")
        for change in [bitmap.clear, bitmap.enable, bitmap.disable, { try bitmap.merge(other) }, { try other.merge(bitmap) }] {
            #expect { try change() } throws: { ($0 as? BitmapError)?.reason == .busy && "\($0)".contains("export 'disk'") }
        }
        #expect(throws: BitmapError.self) { try bitmap.beginUse(by: "another") }
        bitmap.record(Self.range(0, 1))
        #expect(bitmap.dirtyByteCount == 65536, "it goes on recording")
        bitmap.endUse()
        try bitmap.clear()

        bitmap.setReadOnly(true)
        #expect { try bitmap.clear() } throws: { ($0 as? BitmapError)?.reason == .readOnly }
        try bitmap.beginUse(by: "a reader")
        bitmap.endUse()
        try other.merge(bitmap)

        other.setInconsistent()
        #expect(!other.isEnabled)
        #expect { try other.beginUse(by: "a reader") } throws: { ($0 as? BitmapError)?.reason == .inconsistent }
        #expect { try other.clear() } throws: { ($0 as? BitmapError)?.reason == .inconsistent }
    }

    // S-LIM-11
    @Test(arguments: [
        ("", 65536, 1), (String(repeating: "n", count: 1024), 65536, 1), ("n\0", 65536, 1), ("n", 256, 1), ("n", 4 << 30, 1),
        ("n", 65535, 1), ("n", 65536, UInt64.max),
    ] as [(String, UInt64, UInt64)])
    func `of an impossible kind is refused`(name: String, granularity: UInt64, byteCount: UInt64) throws {
        #expect { try DirtyBitmap(name, byteCount: byteCount, granularity: granularity) } throws: { ($0 as? BitmapError)?.reason == .invalid }
        _ = try DirtyBitmap(String(repeating: "n", count: 1023), byteCount: 1)
    }

    @Test func `of an empty device has nothing to tell`() async throws {
        let bitmap = try DirtyBitmap("b", byteCount: 0)
        bitmap.record(Self.range(0, 10))
        #expect(bitmap.dirtyByteCount == 0)
        #expect(bitmap.nextDirtyArea(in: Self.range(0, 10)) == nil)
    }
}
