import Testing

@testable import HostIO

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// For tests that need io_uring.
let hasRing: ConditionTrait = .enabled(
    if: HostFile.ringRefusal == nil, "this kernel gives no io_uring: \(HostFile.ringRefusal?.description ?? "")")

@Suite struct `A ring` {
    /// Through the page cache a request may be answered without the ring; past it every one takes it.
    @Test(hasRing, arguments: [2, 4, 256])
    func `takes ten thousand requests at once, however few fit`(entryCount: UInt32) async throws {
        let scratch = Scratch()
        let blockCount = 1024
        let path = scratch.file(contents: pattern(blockCount * 4096))
        let ring = Result { () throws(HostError) in try HostLoop(entryCount: entryCount) }
        let file = try await HostFile.open(path, .init(isDirect: true), ring: ring)
        #expect(file.io is RingFileIO)
        let expected = pattern(blockCount * 4096)
        let wrong = try await withThrowingTaskGroup(of: Bool.self) { group in
            for index in 0..<10_000 {
                group.addTask {
                    let block = index * 7 % blockCount
                    let contents = Array(expected[block * 4096..<block * 4096 + 4096])
                    if index % 10 == 0 {
                        // The same bytes again: whoever reads them meanwhile sees no difference.
                        try await file.write(contents, at: UInt64(block * 4096), durable: index % 100 == 0)
                        return false
                    }
                    return try await file.bytes(at: UInt64(block * 4096), 4096) != contents
                }
            }
            return try await group.reduce(0) { $0 + ($1 ? 1 : 0) }
        }
        #expect(wrong == 0)
    }

    @Test(hasRing) func `wakes whoever asks after a pause, and after another pause`() async throws {
        let scratch = Scratch()
        let file = try await HostFile.open(scratch.file(contents: pattern(8192)), .init(isDirect: true, usesRing: true))
        for _ in 0..<20 {
            try await Task.sleep(for: .milliseconds(5))
            #expect(try await file.bytes(at: 4096, 4096) == Array(pattern(8192)[4096...]))
            try await file.flush()
        }
    }

    @Test(hasRing) func `moves transfers longer than a bounce buffer, with a head and a tail`() async throws {
        let scratch = Scratch()
        let size = 5 << 20
        let file = try await HostFile.open(scratch.file(byteCount: size), .init(isDirect: true, usesRing: true))
        let bytes = pattern(size - 700)
        try await file.write(bytes, at: 333, durable: true)
        #expect(try await file.bytes(at: 333, size - 700) == bytes)
        #expect(try await file.bytes(at: 0, 333) == [UInt8](repeating: 0, count: 333))
    }

    // A pipe gives what it has: the only file that is certain to answer in parts.
    @Test(hasRing) func `goes on where a short answer ended, and stops at the end of the file`() async throws {
        var ends: [Int32] = [0, 0]
        #expect(pipe(&ends) == 0)
        let (output, input) = (ends[0], ends[1])
        let io = RingFileIO(try HostLoop.ringOfProcess.get())
        let expected = pattern(80)
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 100, alignment: 16)
        defer { bytes.deallocate() }
        #expect(write(input, expected, 30) == 30)
        let memory = BorrowedMemory(bytes)
        async let count = io.read(output, into: memory, at: 0, isDirect: true)
        try await Task.sleep(for: .milliseconds(50))
        #expect(write(input, Array(expected[30...]), 50) == 50)
        try await Task.sleep(for: .milliseconds(50))
        close(input)
        #expect(await count == 80)
        #expect(Array(bytes.prefix(80)) == expected)
        close(output)
    }

    @Test(arguments: [(ENOSYS, "the kernel has none (ENOSYS)"), (EPERM, "a sandbox forbids it (EPERM)"), (ENOMEM, "ENOMEM")])
    func `that the kernel refuses is replaced by threads, and the reason told`(code: Int32, reason: String) async throws {
        let loop = try HostLoop(openRing: { _ throws(HostError) in throw Ring.refusal(-code) })
        let refusal = try #require(loop.ringRefusal)
        let refused = Result<HostLoop, HostError>.failure(refusal)
        #expect(refusal.description.hasPrefix("cannot use io_uring: "))
        #expect(refusal.description.contains(reason))
        let scratch = Scratch()
        for isDirect in [false, true] {
            let file = try await HostFile.open(scratch.file(byteCount: 100_000), .init(isDirect: isDirect, usesRing: true), ring: refused)
            #expect(file.io is ThreadedFileIO)
            try await file.write(pattern(50_000), at: 77, durable: true)
            #expect(try await file.bytes(at: 77, 50_000) == pattern(50_000))
        }
    }

    @Test func `that cannot be as large as asked is an error, not a crash`() {
        #expect(throws: HostError.self) { _ = try Ring(entryCount: 1 << 30) }
        #expect(throws: HostError.self) { _ = try Ring(entryCount: 0) }
    }
}

@Suite struct `A file's share of a ring` {
    /// Pipes that nobody writes to stand for a disk that hangs.
    @Test(hasRing, .timeLimit(.minutes(1))) func `is all that a disk that hangs can keep`() async throws {
        let ring = try HostLoop(entryCount: 8)
        var ends: [Int32] = [0, 0]
        #expect(pipe(&ends) == 0)
        let (output, input) = (ends[0], ends[1])
        let hanging = RingFileIO(ring, callLimit: 4)
        let scratch = Scratch()
        let file = try await HostFile.open(scratch.file(contents: pattern(8192)), .init(isDirect: true), ring: .success(ring))
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 20, alignment: 16)
        defer { bytes.deallocate() }
        let memory = BorrowedMemory(bytes)
        try await withThrowingTaskGroup(of: Int.self) { group in
            for index in 0..<20 {
                group.addTask { await hanging.read(output, into: memory.part(index, 1), at: 0, isDirect: true) }
            }
            try await Task.sleep(for: .milliseconds(50))
            for _ in 0..<50 { #expect(try await file.bytes(at: 0, 8192) == pattern(8192)) }
            #expect(write(input, pattern(20), 20) == 20)
            #expect(try await group.reduce(0, +) == 20)
        }
        #expect(bytes.sorted() == pattern(20).sorted())
        close(input)
        close(output)
    }
}

@Suite struct `A call through a ring` {
    private static func withMemory(_ count: Int, _ body: (BorrowedMemory) -> Void) {
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 16)
        defer { bytes.deallocate() }
        body(BorrowedMemory(bytes))
    }

    @Test func `goes on after a part of it, and ends with the file`() {
        Self.withMemory(100) { memory in
            var call = RingCall(.read, 5, memory, at: 1000)
            #expect(call.completed(30) == .again)
            #expect(call.completed(0) == .finished(30))
            #expect(call.completed(70) == .finished(100))
            var write = RingCall(.write, 5, memory, at: 1000)
            #expect(write.completed(99) == .again)
            #expect(write.completed(1) == .finished(0))
        }
    }

    @Test(arguments: [RingCall.Kind.read, .write])
    func `is submitted again when it was interrupted, and fails as the kernel says`(kind: RingCall.Kind) {
        Self.withMemory(100) { memory in
            var call = RingCall(kind, 5, memory, at: 0)
            #expect(call.completed(-EINTR) == .again)
            #expect(call.completed(-ECANCELED) == .again)
            #expect(call.completed(-EAGAIN) == .elsewhere)
            #expect(call.completed(-EIO) == .finished(-Int(EIO)))
            #expect(call.completed(-EBADF) == .finished(-Int(EBADF)))
        }
    }

    @Test func `that writes nothing at all fails rather than go on for ever`() {
        Self.withMemory(100) { memory in
            var call = RingCall(.write, 5, memory, at: 0)
            #expect(call.completed(0) == .finished(-Int(EIO)))
        }
    }

    @Test func `can be finished by a thread from where it stands`() async throws {
        let scratch = Scratch()
        let path = scratch.file(contents: pattern(100))
        let descriptor = open(path, O_RDWR | O_CLOEXEC)
        defer { close(descriptor) }
        Self.withMemory(100) { memory in
            var call = RingCall(.read, descriptor, memory, at: 0)
            #expect(call.completed(60) == .again)
            #expect(call.perform() == 100)
            #expect((60..<100).allSatisfy { memory.address($0)?.load(as: UInt8.self) == pattern(100)[$0] })
        }
    }
}

@Suite struct `A write gate` {
    @Test func `admits many, or one alone, in the order they came`() async {
        let gate = WriteGate()
        let inside = Inside()
        await withTaskGroup(of: Void.self) { group in
            for index in 0..<500 {
                group.addTask {
                    let isAlone = index % 5 == 0
                    await gate.enter(alone: isAlone)
                    await inside.come(isAlone)
                    await Task.yield()
                    await inside.go(isAlone)
                    gate.leave()
                }
            }
        }
        #expect(await inside.mistakes == 0)
        #expect(await inside.most > 1)
        // Nobody was left inside.
        await gate.enter(alone: true)
        gate.leave()
    }

    @Test(.timeLimit(.minutes(1))) func `does not let those who share starve one who waits to be alone`() async {
        let gate = WriteGate()
        await gate.enter(alone: false)
        let alone = Task {
            await gate.enter(alone: true)
            gate.leave()
        }
        try? await Task.sleep(for: .milliseconds(50))
        let late = Task {
            await gate.enter(alone: false)
            gate.leave()
        }
        try? await Task.sleep(for: .milliseconds(50))
        gate.leave()
        await alone.value
        await late.value
    }

    private actor Inside {
        private var sharers = 0
        private var isOwned = false
        private(set) var mistakes = 0
        private(set) var most = 0

        func come(_ isAlone: Bool) {
            if isOwned || isAlone && sharers > 0 { mistakes += 1 }
            if isAlone { isOwned = true } else { sharers += 1 }
            most = max(most, sharers)
        }

        func go(_ isAlone: Bool) {
            if isAlone { isOwned = false } else { sharers -= 1 }
        }
    }
}
