import Synchronization
import Testing

@testable import HostIO

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

// One after the other: they share the memory of one loop.
@Suite(.serialized) struct `Reads that a loop does without a task` {
    /// What became of reads that began: bytes, or nil where another way has to be taken.
    private final class Answers: Sendable {
        private let list = Mutex<[UInt64: [UInt8]?]>([:])

        func note(_ offset: UInt64, _ bytes: RawSpan?) {
            var copy: [UInt8]?
            if let bytes {
                copy = []
                for offset in 0..<bytes.byteCount { copy?.append(bytes.unsafeLoad(fromByteOffset: offset, as: UInt8.self)) }
            }
            list.withLock { #expect($0.updateValue(copy, forKey: offset) == nil) }
        }

        /// Waits for so many.
        func wait(for count: Int) async throws -> [UInt64: [UInt8]?] {
            for _ in 0..<1000 where list.withLock({ $0.count }) < count { try await Task.sleep(for: .milliseconds(5)) }
            return list.withLock { $0 }
        }
    }

    private static func onLoop<Result: Sendable>(_ body: @escaping @Sendable () -> Result) async throws -> Result {
        let loop = try HostLoop.ringOfProcess.get()
        return await withCheckedContinuation { done in loop.execute { done.resume(returning: body()) } }
    }

    @Test(hasRing, arguments: [true, false])
    func `bring the right bytes, many at once, as many as the file's share allows`(isDirect: Bool) async throws {
        let scratch = Scratch()
        let contents = pattern(4 << 20)
        let file = try await HostFile.open(scratch.file(contents: contents), .init(isDirect: isDirect, usesRing: true))
        for count in [4096, 32 << 10] {
            let answers = Answers()
            let begun = try await Self.onLoop {
                var begun: [UInt64] = []
                for index in 0..<100 {
                    let offset = UInt64(index * 37 % 100) * 32768
                    if file.beginRead(at: offset, count: count, then: { answers.note(offset, $0) }) { begun.append(offset) }
                }
                return begun
            }
            #expect(begun.count == 64)
            let found = try await answers.wait(for: 64)
            #expect(found.count == 64)
            for (offset, bytes) in found { #expect(bytes == Array(contents[Int(offset)..<Int(offset) + count]), "at \(offset)") }
        }
    }

    @Test(hasRing) func `do not begin where they cannot`() async throws {
        let scratch = Scratch()
        let path = scratch.file(contents: pattern(100_000))
        let direct = try await HostFile.open(path, .init(isDirect: true, usesRing: true))
        let threads = try await HostFile.open(path, .init(isDirect: true))
        let begins = { @Sendable (file: HostFile, offset: UInt64, count: Int) in
            file.beginRead(at: offset, count: count) { _ in Issue.record("\(count) bytes at \(offset) were read") }
        }
        #expect(!begins(direct, 0, 4096), "off a loop")
        let begun = try await Self.onLoop {
            [
                begins(threads, 0, 4096), begins(direct, 0, 0), begins(direct, 0, 64 << 10), begins(direct, 1, 4096), begins(direct, 0, 4095),
                // Where no whole block is any more.
                begins(direct, 98_304, 4096), begins(direct, 1 << 40, 4096),
            ]
        }
        #expect(begun == [false, false, false, false, false, false, false])
        #expect(try await direct.bytes(at: 1, 4096) == Array(pattern(100_000)[1..<4097]))
    }

    // S-BUG-13: what is missing is an error, which the other way finds
    @Test(hasRing, arguments: [true, false]) func `have no bytes of a file that has become shorter or was closed`(isClosed: Bool) async throws {
        let scratch = Scratch()
        let path = scratch.file(contents: pattern(1 << 16))
        let file = try await HostFile.open(path, .init(isDirect: true, usesRing: true))
        if isClosed { file.close() } else { #expect(truncate(path, 6144) == 0) }
        let answers = Answers()
        let begun = try await Self.onLoop { file.beginRead(at: 4096, count: 4096) { answers.note(4096, $0) } }
        #expect(begun)
        let found = try await answers.wait(for: 1)
        #expect(found == [4096: nil])
        await #expect(throws: HostError.self) { _ = try await file.bytes(at: 4096, 4096) }
    }
}
