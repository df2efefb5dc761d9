import HostIO
import Testing

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

@Suite struct `The space of a file` {
    private static let size = 4 << 20

    private func fullFile(_ scratch: Scratch, _ mode: HostFile.Options = .init()) async throws -> HostFile {
        let file = try await HostFile.open(scratch.file(contents: pattern(Self.size)), mode)
        try await file.flush()
        return file
    }

    @Test(arguments: parents, modes)
    func `is given back by discarding`(parent: String, mode: HostFile.Options) async throws {
        let scratch = Scratch(in: parent)
        let file = try await fullFile(scratch, mode)
        let before = try file.allocatedByteCount()
        #expect(before >= UInt64(Self.size))
        try await file.discard(at: 1 << 20, count: 2 << 20)
        #expect(try file.allocatedByteCount() <= before - (2 << 20))
        #expect(try await file.bytes(at: 1 << 20, 2 << 20) == [UInt8](repeating: 0, count: 2 << 20))
        #expect(try await file.bytes(at: 0, 1 << 20) == Array(pattern(Self.size).prefix(1 << 20)))
        #expect(file.canDiscard)
    }

    // P-CMD-ZERO: without NO_HOLE space may go, with it stays.
    @Test(arguments: parents, [ZeroOptions(), .mayUnmap, .fast, [.fast, .mayUnmap], .durable, [.mayUnmap, .durable]])
    func `stays under zeroes unless it may go`(parent: String, options: ZeroOptions) async throws {
        let scratch = Scratch(in: parent)
        let file = try await fullFile(scratch)
        let before = try file.allocatedByteCount()
        try await file.writeZeroes(at: 1 << 20, count: 2 << 20, options)
        let after = try file.allocatedByteCount()
        #expect(options.contains(.mayUnmap) ? after <= before - (2 << 20) : after >= UInt64(Self.size))
        #expect(try await file.bytes(at: 1 << 20, 2 << 20) == [UInt8](repeating: 0, count: 2 << 20))
        #expect(try await file.bytes(at: 3 << 20, 1 << 20) == Array(pattern(Self.size).suffix(1 << 20)))
        #expect(file.byteCount == UInt64(Self.size))
    }

    @Test(arguments: parents)
    func `is taken by zeroes that may not be a hole`(parent: String) async throws {
        let scratch = Scratch(in: parent)
        let file = try await HostFile.open(scratch.file(byteCount: Self.size))
        #expect(try file.allocatedByteCount() == 0)
        try await file.writeZeroes(at: 0, count: 1 << 20)
        #expect(try file.allocatedByteCount() >= 1 << 20)
    }

    @Test(arguments: parents, modes)
    func `is told run by run`(parent: String, mode: HostFile.Options) async throws {
        let scratch = Scratch(in: parent)
        let file = try await HostFile.open(scratch.file(byteCount: 1 << 20), mode)
        try await file.write(pattern(65536), at: 131_072)
        try await file.write(pattern(65536), at: 524_288)
        try await file.flush()
        typealias Run = HostFile.Run
        let hole = { Run(count: $0, isHole: true) }
        let data = { Run(count: $0, isHole: false) }
        #expect(
            try await file.runs(at: 0, count: 1 << 20, limit: 100)
                == [hole(131_072), data(65536), hole(327_680), data(65536), hole((1 << 20) - 589_824)])
        #expect(try await file.runs(at: 140_000, count: 10, limit: 100) == [data(10)])
        #expect(try await file.runs(at: 1, count: 10, limit: 100) == [hole(10)])
        #expect(try await file.runs(at: 1_000_000, count: 48_576, limit: 100) == [hole(48_576)])
        #expect(try await file.runs(at: 0, count: 1 << 20, limit: 2) == [hole(131_072), data(65536)])
        #expect(try await file.runs(at: 5, count: 0, limit: 2).isEmpty)
    }

    @Test func `is data behind the end of a file that shrank, which then fails to be read`() async throws {
        let scratch = Scratch()
        let file = try await HostFile.open(scratch.file(byteCount: 1 << 20))
        #expect(truncate(file.path, 65536) == 0)
        let runs = try await file.runs(at: 0, count: 1 << 20, limit: 100)
        #expect(runs == [.init(count: 65536, isHole: true), .init(count: (1 << 20) - 65536, isHole: false)])
    }

    // A file of /proc has no SEEK_HOLE; asking byte by byte would take days.
    @Test(.enabled(if: access("/proc/self/maps", R_OK) == 0, "needs /proc"), .timeLimit(.minutes(1)))
    func `is all data where holes cannot be told`() async throws {
        let file = try await HostFile.open("/proc/self/maps", .init(isReadOnly: true))
        #expect(file.kind == .regular)
        for _ in 0..<2 {
            #expect(try await file.runs(at: 7, count: 1 << 40, limit: 16) == [.init(count: 1 << 40, isHole: false)])
        }
    }

    // S-BLK-11
    @Test(arguments: parents, [false, true])
    func `is not taken by prefetching`(parent: String, isDirect: Bool) async throws {
        let scratch = Scratch(in: parent)
        let file = try await HostFile.open(scratch.file(byteCount: Self.size), .init(isDirect: isDirect))
        try await file.prefetch(at: 0, count: UInt64(Self.size))
        #expect(try file.allocatedByteCount() == 0)
        #expect(try await file.bytes(at: 0, Self.size) == [UInt8](repeating: 0, count: Self.size))
    }

    // S-ERR-05
    @Test(.enabled(if: SmallFileSystem.isAvailable, "needs root and mount"), arguments: [false, true], modes)
    func `runs out with ENOSPC, and what is there stays usable`(durable: Bool, mode: HostFile.Options) async throws {
        let small = try #require(SmallFileSystem(byteCount: 1 << 20))
        let file = try await HostFile.open(small.file(byteCount: 8 << 20), mode)
        try await file.write(pattern(256 << 10), at: 0, durable: durable)
        let error = await hostError { try await file.write(pattern(4 << 20), at: 1 << 20, durable: durable) }
        #expect(error?.name == "ENOSPC")
        #expect(error?.reason == "No space left on device (ENOSPC)")
        #expect(await hostError { try await file.writeZeroes(at: 0, count: 8 << 20) }?.name == "ENOSPC")
        #expect(try await file.bytes(at: 0, 256 << 10) == pattern(256 << 10))
        try await file.discard(at: 1 << 20, count: 7 << 20)
        try await file.write(pattern(100), at: 7 << 20, durable: durable)
        try await file.flush()
    }

    @Test(.enabled(if: SmallFileSystem.isAvailable, "needs root and mount"))
    func `of a read-only file system is not written`() async throws {
        let small = try #require(SmallFileSystem(byteCount: 1 << 20))
        let path = small.file(byteCount: 4096)
        try #require(small.makeReadOnly())
        #expect(await hostError { try await HostFile.open(path) }?.name == "EROFS")
        #expect(try await HostFile.open(path, .init(isReadOnly: true)).byteCount == 4096)
    }

    // The kernel tells of a lost write once; a second flush that succeeded would be a lie.
    @Test(
        .enabled(if: SmallFileSystem.isAvailable && LoopDevice.isAvailable, "needs root, mount and losetup"),
        arguments: modes.filter { !$0.isDirect })
    func `that a disk lost makes every later write and flush fail`(mode: HostFile.Options) async throws {
        let small = try #require(SmallFileSystem(byteCount: 1 << 20))
        let loop = try #require(LoopDevice(over: small.file(byteCount: 16 << 20)))
        let disk = try await HostFile.open(loop.path, mode)
        #expect(disk.kind == .blockDevice)
        #expect(disk.byteCount == 16 << 20)
        try await disk.write(pattern(8 << 20), at: 0)
        #expect(await hostError { try await disk.flush() } != nil)
        for _ in 0..<2 {
            #expect(await hostError { try await disk.flush() }?.reason.contains("must be opened anew") == true)
            #expect(await hostError { try await disk.write([1], at: 0) } != nil)
            #expect(!disk.writeNow([1], at: 0))
            #expect(await hostError { try await disk.writeZeroes(at: 0, count: 512) } != nil)
        }
    }
}
