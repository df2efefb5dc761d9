import HostIO
import Testing

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// The file systems that every machine has: one on a disk, one in memory.
let parents = (["/tmp", "/dev/shm"] as [String]).filter { access($0, W_OK) == 0 }

/// How files are opened: through the page cache and past it, by threads and, where this kernel has it, by io_uring.
let modes = ([false, true] as [Bool]).filter { !$0 || HostFile.ringRefusal == nil }.flatMap { usesRing in
    ([false, true] as [Bool]).map { HostFile.Options(isDirect: $0, usesRing: usesRing) }
}

@Suite struct `A host file` {
    @Test(arguments: parents, modes)
    func `reads back what was written, at any alignment`(parent: String, mode: HostFile.Options) async throws {
        let scratch = Scratch(in: parent)
        let size = 1_300_007
        let file = try await HostFile.open(scratch.file(byteCount: size), mode)
        var model = [UInt8](repeating: 0, count: size)
        var random = SystemRandomNumberGenerator()
        for round in 0..<60 {
            let offset = Int.random(in: 0..<size, using: &random)
            let aligned = round % 3 == 0 ? offset & ~4095 : offset
            let count = Int.random(in: 0...min(size - aligned, round % 5 == 0 ? 700_000 : 9_000), using: &random)
            let bytes = pattern(count, seed: round)
            try await file.write(bytes, at: UInt64(aligned), durable: round % 7 == 0)
            model.replaceSubrange(aligned..<aligned + count, with: bytes)
            let start = Int.random(in: 0..<size, using: &random)
            let length = Int.random(in: 0...min(size - start, 50_000), using: &random)
            #expect(try await file.bytes(at: UInt64(start), length) == Array(model[start..<start + length]))
        }
        try await file.flush()
        #expect(try await file.bytes(at: 0, size) == model)
        // Another opening sees the same, past and through the page cache.
        for other in [false, true] {
            let second = try await HostFile.open(file.path, .init(isReadOnly: true, isDirect: other))
            #expect(try await second.bytes(at: 0, size) == model)
        }
        #expect(file.byteCount == UInt64(size))
    }

    @Test(arguments: modes.filter(\.isDirect))
    func `keeps concurrent direct writes apart that share a page`(mode: HostFile.Options) async throws {
        let scratch = Scratch()
        let size = 256 << 10
        let file = try await HostFile.open(scratch.file(byteCount: size), mode)
        for round in 0..<10 {
            await withTaskGroup(of: Void.self) { group in
                // Odd lengths: nearly every write has a head and a tail in a neighbour's block.
                for index in 0..<64 {
                    group.addTask {
                        try? await file.write([UInt8](repeating: UInt8(index + round), count: 3_001), at: UInt64(index * 3_001))
                    }
                }
                for index in 0..<8 {
                    group.addTask { try? await file.write([UInt8](repeating: 0xAA, count: 4096), at: UInt64(48 * 4096 + index * 4096)) }
                }
            }
            for index in 0..<64 {
                #expect(try await file.bytes(at: UInt64(index * 3_001), 3_001) == [UInt8](repeating: UInt8(index + round), count: 3_001))
            }
        }
    }

    @Test(arguments: modes)
    func `stays in step when many requests run at once`(mode: HostFile.Options) async throws {
        let scratch = Scratch()
        let file = try await HostFile.open(scratch.file(byteCount: 64 << 20), mode)
        try await withThrowingTaskGroup(of: Void.self) { group in
            for index in 0..<256 {
                group.addTask {
                    let bytes = pattern(200_000, seed: index)
                    try await file.write(bytes, at: UInt64(index * 200_000))
                    #expect(try await file.bytes(at: UInt64(index * 200_000), 200_000) == bytes)
                }
            }
            try await group.waitForAll()
        }
    }

    // S-EXP-06, S-BUG-13
    @Test(arguments: [0, 1, 511, 1000, 4097], modes)
    func `has the size of its file, to the byte`(size: Int, mode: HostFile.Options) async throws {
        let scratch = Scratch()
        let path = scratch.file(contents: pattern(size))
        let file = try await HostFile.open(path, mode)
        #expect(file.byteCount == UInt64(size))
        #expect(file.kind == .regular)
        try await file.write(pattern(size, seed: 9), at: 0)
        try await file.writeZeroes(at: 0, count: UInt64(size))
        try await file.flush()
        #expect(try await HostFile.open(path).byteCount == UInt64(size))
    }

    // S-BLK-01, S-BLK-06
    @Test(arguments: parents, modes)
    func `fails, and gives no zeroes, when its file has become shorter`(parent: String, mode: HostFile.Options) async throws {
        let scratch = Scratch(in: parent)
        let path = scratch.file(contents: pattern(100_000))
        let file = try await HostFile.open(path, mode)
        #expect(truncate(path, 50_000) == 0)
        #expect(file.byteCount == 100_000, "the size is that of the opening")
        #expect(try await file.bytes(at: 0, 50_000) == Array(pattern(100_000).prefix(50_000)))
        for (offset, count) in [(49_999, 2), (50_000, 1), (99_999, 1), (0, 100_000)] as [(UInt64, Int)] {
            let error = try #require(await hostError { try await file.bytes(at: offset, count) })
            #expect(error.name == "EIO")
            #expect(error.reason.contains("has become shorter"))
            #expect(file.bytesNow(at: offset, count) == nil)
        }
    }

    @Test func `reads and writes at once what needs no waiting`() async throws {
        let scratch = Scratch()
        let file = try await HostFile.open(scratch.file(contents: pattern(10_000)))
        #expect(file.bytesNow(at: 5, 9_000) == Array(pattern(10_000)[5..<9_005]))
        let memory = Scratch(in: "/dev/shm")
        let quick = try await HostFile.open(memory.file(byteCount: 100_000))
        #expect(quick.isInMemory)
        #expect(quick.writeNow(pattern(50_000), at: 77))
        #expect(quick.bytesNow(at: 77, 50_000) == pattern(50_000))
    }

    @Test func `never waits in direct mode, by saying no`() async throws {
        let scratch = Scratch()
        let file = try await HostFile.open(scratch.file(contents: pattern(8192)), .init(isDirect: true))
        #expect(file.bytesNow(at: 0, 4096) == nil)
        #expect(!file.writeNow(pattern(4096), at: 0))
    }

    @Test(arguments: modes)
    func `refuses everything after it was closed, and is not somebody else's file`(mode: HostFile.Options) async throws {
        let scratch = Scratch()
        let file = try await HostFile.open(scratch.file(contents: pattern(8192)), mode)
        file.close()
        file.close()
        let other = try await HostFile.open(scratch.file("other", contents: pattern(8192, seed: 5)))
        for count in [10, 4096] {
            #expect(await hostError { try await file.bytes(at: 0, count) }?.name == "EBADF")
            #expect(await hostError { try await file.write(pattern(count), at: 0) }?.name == "EBADF")
            #expect(await hostError { try await file.write(pattern(count), at: 0, durable: true) }?.name == "EBADF")
            #expect(file.bytesNow(at: 0, count) == nil)
        }
        #expect(await hostError { try await file.flush() }?.name == "EBADF")
        #expect(try await other.bytes(at: 0, 8192) == pattern(8192, seed: 5))
    }

    @Test func `names what it could not open, and why`() async throws {
        let scratch = Scratch()
        let missing = try #require(await hostError { try await HostFile.open("\(scratch.path)/none") })
        #expect(missing.name == "ENOENT")
        #expect(missing.description == "cannot open '\(scratch.path)/none': No such file or directory (ENOENT)")
        #expect(!missing.reason.contains(scratch.path))
        #expect(await hostError { try await HostFile.open(scratch.path) }?.name == "EISDIR")
        #expect(await hostError { try await HostFile.open("a\0b") }?.reason == "the path contains a NUL byte")
        #expect(try await HostFile.open(scratch.path, .init(isReadOnly: true)).kind == .directory)
    }

    @Test func `does not wait for the other end of a fifo`() async throws {
        let scratch = Scratch()
        #expect(mkfifo("\(scratch.path)/fifo", 0o600) == 0)
        #expect(try await HostFile.open("\(scratch.path)/fifo", .init(isReadOnly: true)).kind == .fifo)
        #expect(try await HostFile.open("/dev/null").kind == .characterDevice)
    }

    @Test(arguments: modes)
    func `is not written when it was opened to be read`(mode: HostFile.Options) async throws {
        let scratch = Scratch()
        var mode = mode
        mode.isReadOnly = true
        let file = try await HostFile.open(scratch.file(contents: [1, 2, 3]), mode)
        await #expect(throws: HostError.self) { try await file.write([9], at: 0) }
        await #expect(throws: HostError.self) { try await file.writeZeroes(at: 0, count: 3) }
        #expect(!file.writeNow([9], at: 0))
        #expect(try await file.bytes(at: 0, 3) == [1, 2, 3])
    }
}

/// The error that `body` throws, if it is one of the host.
func hostError<Result>(_ body: () async throws -> Result) async -> HostError? {
    do {
        _ = try await body()
        return nil
    } catch {
        return error as? HostError
    }
}
