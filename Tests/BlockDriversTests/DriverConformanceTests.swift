import Block
import BlockDeviceConformance
import BlockDrivers
import Testing

/// The file systems that every machine has: one on a disk, one in memory.
private let parents = ["/tmp", "/dev/shm"]

/// Who waits for the disk: threads, and io_uring where this kernel has it. (`native` is io_uring in the modes that allow it.)
private let waiters = [RawOptions.AIO.threads, .ioUring].filter { $0.refusal == nil }

@Suite struct `The drivers obey the laws` {
    @Test(arguments: parents, RawOptions.Cache.allCases)
    func `a file, in every cache mode`(parent: String, cache: RawOptions.Cache) async throws {
        let scratch = Scratch(in: parent)
        let path = scratch.file(byteCount: 700_001)
        for aio in waiters {
            try await checkConformance(steps: 150) { try await RawFile.open(path, RawOptions(cache: cache, aio: aio)) }
        }
    }

    @Test(arguments: RawOptions.Discard.allCases, RawOptions.DetectZeroes.allCases)
    func `a file, however it treats zeroes`(discard: RawOptions.Discard, detectZeroes: RawOptions.DetectZeroes) async throws {
        let options = RawOptions(discard: discard, detectZeroes: detectZeroes)
        guard options.contradiction == nil else { return }
        let scratch = Scratch()
        let path = scratch.file(byteCount: 300_001)
        try await checkConformance(steps: 150) { try await openRaw(path, options) }
    }

    @Test(arguments: [0, 1, 511, 4096, 1 << 33])
    func `a file of an odd size`(size: Int) async throws {
        let scratch = Scratch()
        let path = scratch.file(byteCount: size)
        try await checkConformance(steps: 100) { try await RawFile.open(path) }
        for aio in waiters {
            try await checkConformance(steps: 50) { try await RawFile.open(path, RawOptions(cache: .none, aio: aio)) }
        }
    }

    @Test(arguments: [RawOptions.Cache.writeback, .directsync])
    func `a read-only file`(cache: RawOptions.Cache) async throws {
        let scratch = Scratch()
        let path = scratch.file(contents: (0..<100_001).map { UInt8(truncatingIfNeeded: $0 * 7 >> 3) })
        try await checkConformance(steps: 200) { try await RawFile.open(path, RawOptions(isReadOnly: true, cache: cache)) }
        try await checkConformance(steps: 200) { try await RawFile.open(path, RawOptions(isReadOnly: true, cache: cache, aio: .ioUring)) }
    }

    @Test func `a window of a file and of memory`() async throws {
        let scratch = Scratch()
        let path = scratch.file(byteCount: 500_000)
        try await checkConformance(steps: 150) { try await RawWindow(RawFile.open(path), offset: 77_777, byteCount: 301_111) }
        try await checkConformance(steps: 150) { try RawWindow(MemoryDevice(byteCount: 1 << 20), offset: 65_000) }
        let before = try await RawFile.open(path)
        #expect(try await before.bytes(at: 0, 77_777) == [UInt8](repeating: 0, count: 77_777))
        #expect(try await before.bytes(at: 378_888, 121_112) == [UInt8](repeating: 0, count: 121_112))
    }

    @Test func `a filter that detects zeroes`() async throws {
        try await checkConformance(steps: 200) { DetectZeroes(MemoryDevice(byteCount: 300_001), mayUnmap: true) }
        try await checkConformance(steps: 200) { DetectZeroes(MemoryDevice(byteCount: 300_001), mayUnmap: false) }
    }

    @Test func `a filter with no faults`() async throws {
        try await checkConformance(steps: 200) { Faults(MemoryDevice(byteCount: 300_001)) }
    }

    @Test(
        .enabled(if: LoopDevice.isAvailable, "needs root and losetup"), arguments: [512, 4096],
        [RawOptions.Cache.writeback, .none, .directsync])
    func `a loop device`(sector: Int, cache: RawOptions.Cache) async throws {
        let scratch = Scratch(in: "/dev/shm")
        let loop = try #require(LoopDevice(over: scratch.file(byteCount: 4 << 20), sector: sector))
        for aio in waiters {
            try await checkConformance(steps: 100) { try await RawFile.open(loop.path, RawOptions(cache: cache, aio: aio)) }
        }
    }
}

extension BlockDevice {
    func bytes(at offset: UInt64, _ count: Int) async throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xEE, count: count)
        do {
            var span = bytes.mutableSpan
            var raw = span.mutableBytes
            try await read(at: offset, into: &raw)
        }
        return bytes
    }

    func write(_ bytes: [UInt8], at offset: UInt64, _ options: WriteOptions = []) async throws {
        try await write(at: offset, from: bytes.span.bytes, options)
    }

    /// The extents of the whole device.
    func extents() async throws -> [Extent] {
        var all = ExtentList(byteCountLimit: info.byteCount)
        try await status(of: ByteRange(ofDevice: info.byteCount), into: &all)
        return all.extents
    }
}

func range(_ start: UInt64, _ count: UInt64) -> ByteRange { ByteRange(start: start, count: count)! }

func blockError<Result>(_ body: () async throws -> Result) async -> BlockError? {
    do {
        _ = try await body()
        return nil
    } catch {
        return error as? BlockError
    }
}

func openError<Result>(_ body: () async throws -> Result) async -> OpenError? {
    do {
        _ = try await body()
        return nil
    } catch {
        return error as? OpenError
    }
}
