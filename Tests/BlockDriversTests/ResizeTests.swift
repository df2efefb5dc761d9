import Block
import BlockDrivers
import Testing

@Suite struct `A file that may grow` {
    private static func open(_ byteCount: Int, cache: RawOptions.Cache = .writeback) async throws -> RawFile {
        try await open(byteCount, RawOptions(cache: cache, isGrowable: true))
    }

    private static func open(_ byteCount: Int, _ options: RawOptions) async throws -> RawFile {
        // The file goes with the object, its bytes with their last user.
        let scratch = Scratch()
        defer { withExtendedLifetime(scratch) {} }
        return try await RawFile.open(scratch.file(byteCount: byteCount), options)
    }

    @Test(arguments: [RawOptions.Cache.writeback, .writethrough, .none, .directsync, .unsafe])
    func `becomes longer by writes behind its end, with zeroes in between`(cache: RawOptions.Cache) async throws {
        let file = try await Self.open(1000, cache: cache)
        try await file.write([UInt8](repeating: 7, count: 5000), at: 70_000)
        #expect(file.currentByteCount == 75_000)
        #expect(file.info.byteCount == 1000)
        #expect(try await file.bytes(at: 1000, 69_000) == [UInt8](repeating: 0, count: 69_000))
        #expect(try await file.bytes(at: 70_000, 5000) == [UInt8](repeating: 7, count: 5000))
        #expect(await blockError { try await file.bytes(at: 74_999, 2) }?.kind == .inputOutput, "nothing is behind the end")
        // Aligned, for the direct modes.
        try await file.write([UInt8](repeating: 8, count: 65536), at: 1 << 20)
        #expect(file.currentByteCount == (1 << 20) + 65536)
        #expect(try await file.bytes(at: 1 << 20, 65536) == [UInt8](repeating: 8, count: 65536))
    }

    @Test(arguments: [WriteOptions.mayUnmap, []])
    func `becomes longer by zeroes`(options: WriteOptions) async throws {
        let file = try await Self.open(1000)
        try await file.write([UInt8](repeating: 7, count: 1000), at: 0)
        try await file.writeZeroes(range(500, 9500), options)
        #expect(file.currentByteCount == 10_000)
        #expect(try await file.bytes(at: 0, 10_000) == [UInt8](repeating: 7, count: 500) + [UInt8](repeating: 0, count: 9500))
    }

    @Test func `becomes longer and shorter when it is told`() async throws {
        let file = try await Self.open(1000)
        try await file.resize(to: 1 << 20)
        #expect(file.currentByteCount == 1 << 20)
        try await file.write([UInt8](repeating: 7, count: 100), at: (1 << 20) - 100)
        try await file.resize(to: 500)
        #expect(file.currentByteCount == 500)
        try await file.resize(to: 2 << 20)
        #expect(try await file.bytes(at: (1 << 20) - 100, 100) == [UInt8](repeating: 0, count: 100), "what was cut off does not come back")
        #expect(await blockError { try await file.resize(to: .max) }?.kind == .tooLarge)
    }

    @Test func `is mapped where it has grown`() async throws {
        let file = try await Self.open(1000)
        let mapper = try #require(file.makeMapper())
        try await file.write([UInt8](repeating: 7, count: 8192), at: 1 << 20)
        var segments = SegmentList()
        #expect(mapper.mapRead(range(1 << 20, 8192), into: &segments))
        #expect(segments.areAtHand)
        segments.removeAll()
        #expect(mapper.mapWrite(range(2 << 20, 4096), into: &segments))
        let bytes = [UInt8](repeating: 9, count: 4096)
        if segments.only?.writeNow(from: bytes.span.bytes) == true { #expect(file.currentByteCount == (2 << 20) + 4096) }
    }

    // S-EXP-06
    @Test func `is not what an export is`() async throws {
        let file = try await Self.open(1000, RawOptions())
        #expect(await blockError { try await file.resize(to: 2000) }?.kind == .unsupported)
        #expect(file.currentByteCount == 1000)
        let readOnly = try await Self.open(1000, RawOptions(isReadOnly: true, isGrowable: true))
        #expect(await blockError { try await readOnly.resize(to: 2000) }?.kind == .readOnly)
    }
}
