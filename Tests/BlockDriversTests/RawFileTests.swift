import Block
import BlockDrivers
import Testing

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

@Suite struct `A raw file` {
    @Test func `is a regular file or a disk, and nothing else`() async throws {
        let scratch = Scratch()
        mkfifo("\(scratch.path)/fifo", 0o600)
        let wrong = [scratch.path: "directory", "\(scratch.path)/fifo": "named pipe", "/dev/null": "character device", "/dev/tty0": ""]
        for (path, word) in wrong where access(path, R_OK | W_OK) == 0 {
            for isReadOnly in [false, true] {
                let error = try #require(await openError { try await RawFile.open(path, RawOptions(isReadOnly: isReadOnly)) })
                #expect(error.reason == .notADisk, "\(error)")
                #expect(error.detail.contains(word) || error.detail.contains("EISDIR"))
                #expect(error.description.hasPrefix("Could not open '\(path)': "))
            }
        }
        let missing = await openError { try await RawFile.open("\(scratch.path)/none") }
        #expect(missing?.reason == .host)
        #expect(missing?.detail == "No such file or directory (ENOENT)")
    }

    @Test func `refuses options that contradict each other`() async throws {
        let path = Scratch().file()
        let native = await openError { try await RawFile.open(path, RawOptions(aio: .native)) }
        #expect(native?.reason == .invalidOptions)
        #expect(native?.detail.contains("cache=none or cache=directsync") == true)
        #expect(RawOptions(cache: .none, aio: .native).contradiction == nil)
        #expect(RawOptions().aio == .auto && RawOptions.AIO.auto.refusal == nil, "uses what there is")
        let unmap = await openError { try await openRaw(path, RawOptions(discard: .ignore, detectZeroes: .unmap)) }
        #expect(unmap?.detail.contains("discard=unmap") == true)
    }

    // S-CMD-19, S-BLK-09
    @Test func `leaves space alone when discards are ignored`() async throws {
        let scratch = Scratch()
        let device = try await RawFile.open(scratch.file(byteCount: 1 << 20), RawOptions(discard: .ignore))
        try await device.write([UInt8](repeating: 7, count: 1 << 20), at: 0)
        try await device.discard(range(0, 1 << 20))
        #expect(try await device.bytes(at: 0, 1 << 20) == [UInt8](repeating: 7, count: 1 << 20))
        try await device.writeZeroes(range(0, 1 << 20), .mayUnmap)
        try await device.flush()
        #expect(allocated("\(scratch.path)/disk") >= 1 << 20)
    }

    @Test func `has holes where it was trimmed, and tells`() async throws {
        let scratch = Scratch()
        let device = try await RawFile.open(scratch.file(byteCount: 1 << 20))
        try await device.write([UInt8](repeating: 7, count: 1 << 20), at: 0)
        try await device.discard(range(65536, 131_072))
        #expect(try await device.extents() == [Extent(65536, .data), Extent(131_072, [.hole, .zero]), Extent(851_968, .data)])
        var one = ExtentList(byteCountLimit: 1 << 20, extentCountLimit: 1)
        try await device.status(of: range(0, 1 << 20), into: &one)
        #expect(one.extents == [Extent(65536, .data)])
    }

    @Test(arguments: RawOptions.Cache.allCases)
    func `maps reads, and the writes that need no waiting by its cache mode`(cache: RawOptions.Cache) async throws {
        let scratch = Scratch()
        let device = try await RawFile.open(scratch.file(byteCount: 8192), RawOptions(cache: cache))
        let mapper = try #require(device.makeMapper())
        var segments = SegmentList()
        let mapsReads = mapper.mapRead(range(0, 10), into: &segments)
        let mapsWrites = mapper.mapWrite(range(0, 10), into: &segments)
        #expect(mapper.placesAreFixed)
        #expect(mapsReads)
        // Past the page cache nothing is at hand, but there is a place to read from.
        if cache.isDirect { #expect(!segments.areAtHand) }
        #expect(mapsWrites == (!cache.writesThrough && !cache.isDirect))
    }

    @Test func `maps no writes when it is read-only or zeroes are looked for`() async throws {
        let scratch = Scratch()
        let path = scratch.file(byteCount: 8192)
        for options in [RawOptions(isReadOnly: true), RawOptions(detectZeroes: .on)] {
            let device = try await openRaw(path, options)
            var segments = SegmentList()
            let mapper = try #require(device.makeMapper())
            let maps = mapper.mapWrite(range(0, 10), into: &segments)
            #expect(!maps)
            #expect(segments.isEmpty)
            await device.close()
        }
    }

    @Test func `turns written zeroes into holes, or into space, or leaves them`() async throws {
        let scratch = Scratch()
        for (mode, isHole) in [(RawOptions.DetectZeroes.off, false), (.on, false), (.unmap, true)] {
            let path = scratch.file(byteCount: 1 << 20)
            let device = try await openRaw(path, RawOptions(detectZeroes: mode))
            try await device.write([UInt8](repeating: 7, count: 1 << 20), at: 0)
            try await device.write([UInt8](repeating: 0, count: 1 << 20), at: 0, .durable)
            #expect((allocated(path) < 1 << 19) == isHole, "\(mode)")
            #expect(try await device.bytes(at: 0, 1 << 20) == [UInt8](repeating: 0, count: 1 << 20))
            await device.close()
        }
    }

    // S-BLK-10: the flush of a file that is no longer there fails, unless it was none to begin with
    @Test(arguments: RawOptions.Cache.allCases, [false, true])
    func `flushes, but not when cache=unsafe or nothing can have been written`(cache: RawOptions.Cache, isReadOnly: Bool) async throws {
        let scratch = Scratch()
        let device = try await RawFile.open(scratch.file(byteCount: 4096), RawOptions(isReadOnly: isReadOnly, cache: cache))
        try await device.flush()
        await device.close()
        let isSkipped = cache == .unsafe || isReadOnly
        #expect(await blockError { try await device.flush() }?.kind == (isSkipped ? nil : .inputOutput))
    }

    // S-REP-12, P-ERR-09
    @Test func `tells clients what failed without the names of this host's files`() async throws {
        let scratch = Scratch()
        let path = scratch.file(byteCount: 100_000)
        let device = try await RawFile.open(path)
        #expect(truncate(path, 0) == 0)
        let error = try #require(await blockError { try await device.bytes(at: 5, 10) })
        #expect(error.kind == .inputOutput)
        #expect(error.detail.contains("has become shorter"))
        #expect(!error.detail.contains(scratch.path))
    }

    @Test func `is refused to a second writer, unless it is not locked`() async throws {
        let scratch = Scratch()
        let path = scratch.file(byteCount: 8192)
        let first = try await RawFile.open(path)
        #expect(first.isLocked)
        let error = await openError { try await RawFile.open(path) }
        #expect(error?.reason == .locked)
        #expect(
            error?.description == "Could not open '\(path)': Failed to get \"write\" lock. Is another process using the image [\(path)]?")
        let unlocked = try await RawFile.open(path, RawOptions(isLocked: false))
        #expect(!unlocked.isLocked)
        let reader = try await RawFile.open(path, RawOptions(isReadOnly: true))
        #expect(reader.isLocked)
        await first.close()
        _ = try await RawFile.open(path)
    }

    // S-ERR-05
    @Test(.enabled(if: SmallFileSystem.isAvailable, "needs root and mount"), arguments: RawOptions.Cache.allCases)
    func `answers a full disk with no space`(cache: RawOptions.Cache) async throws {
        let small = try #require(SmallFileSystem(byteCount: 1 << 20))
        let device = try await RawFile.open(small.file(byteCount: 8 << 20), RawOptions(cache: cache))
        #expect(await blockError { try await device.write([UInt8](repeating: 1, count: 4 << 20), at: 0) }?.kind == .noSpace)
        try await device.discard(range(0, 8 << 20))
        try await device.write([1, 2, 3], at: 0)
        #expect(try await device.bytes(at: 0, 3) == [1, 2, 3])
    }

    private func allocated(_ path: String) -> Int {
        var status = stat()
        stat(path, &status)
        return Int(status.st_blocks) * 512
    }
}
