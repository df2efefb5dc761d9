import HostIO
import Testing

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

// S-BLK-15
@Suite struct `The lock of an image` {
    private func open(_ path: String, isReadOnly: Bool) async throws -> HostFile {
        let file = try await HostFile.open(path, .init(isReadOnly: isReadOnly))
        #expect(try await file.lock())
        return file
    }

    @Test func `lets readers share, and one writer beside them`() async throws {
        let scratch = Scratch()
        let path = scratch.file(byteCount: 4096)
        let first = try await open(path, isReadOnly: true)
        let second = try await open(path, isReadOnly: true)
        let writer = try await open(path, isReadOnly: false)
        let third = try await open(path, isReadOnly: true)
        for file in [first, second, third] { file.close() }
        writer.close()
    }

    @Test func `keeps a second writer out until the first has closed`() async throws {
        let scratch = Scratch()
        let path = scratch.file(byteCount: 4096)
        let first = try await open(path, isReadOnly: false)
        for _ in 0..<2 {
            let second = try await HostFile.open(path)
            let error = try #require(await hostError { try await second.lock() })
            #expect(error.reason == "Failed to get \"write\" lock. Is another process using the image [\(path)]?")
        }
        // A refused one leaves nothing behind.
        first.close()
        _ = try await open(path, isReadOnly: false)
    }

    @Test func `keeps every writer off an image, even if it is only read`() async throws {
        let scratch = Scratch()
        let path = scratch.file(byteCount: 4096)
        func open(isReadOnly: Bool, isImage: Bool = false) async throws -> HostFile {
            let file = try await HostFile.open(path, .init(isReadOnly: isReadOnly))
            #expect(try await file.lock(isImage: isImage))
            return file
        }
        let readers = [try await open(isReadOnly: true, isImage: true), try await open(isReadOnly: true, isImage: true), try await open(isReadOnly: true)]
        for isImage in [false, true] {
            let error = try #require(await hostError { _ = try await open(isReadOnly: false, isImage: isImage) })
            #expect(error.reason.contains("\"write\" lock"), "\(error)")
        }
        for reader in readers { reader.close() }
        let writer = try await open(isReadOnly: false, isImage: true)
        for isImage in [false, true] {
            let error = try #require(await hostError { _ = try await open(isReadOnly: true, isImage: isImage) })
            #expect(error.reason.contains(isImage ? "shared \"write\" lock" : "shared \"resize\" lock"), "\(error)")
        }
        writer.close()
        // A lock that grows: what is a raw file's first turns out to hold an image.
        let reader = try await open(isReadOnly: true)
        let other = try await open(isReadOnly: false)
        #expect(await hostError { _ = try await reader.lock(isImage: true) } != nil)
        other.close()
        reader.close()
    }

    private func qemu(_ path: String, _ scratch: Scratch, _ options: [String] = []) async throws -> Child {
        let socket = "\(scratch.path)/\(options.count).sock"
        let child = try #require(Child(tool("qemu-nbd")!, ["-t", "-f", "raw", "-k", socket] + options + [path]))
        for _ in 0..<500 where access(socket, F_OK) != 0 && child.isRunning { try await Task.sleep(for: .milliseconds(10)) }
        return child
    }

    @Test(.enabled(if: tool("qemu-nbd") != nil, "needs qemu-nbd"))
    func `keeps qemu-nbd's writers out, and admits its readers`() async throws {
        let scratch = Scratch()
        let path = scratch.file(byteCount: 1 << 20)
        let writer = try await open(path, isReadOnly: false)
        let refused = try await qemu(path, scratch)
        for _ in 0..<500 where refused.isRunning { try await Task.sleep(for: .milliseconds(10)) }
        #expect(!refused.isRunning)
        refused.stop()
        let reader = try await qemu(path, scratch, ["-r"])
        #expect(reader.isRunning)
        reader.stop()
        writer.close()
        let admitted = try await qemu(path, scratch)
        #expect(admitted.isRunning)
        admitted.stop()
    }

    @Test(.enabled(if: tool("qemu-nbd") != nil, "needs qemu-nbd"))
    func `is refused where qemu-nbd writes`() async throws {
        let scratch = Scratch()
        let path = scratch.file(byteCount: 1 << 20)
        let other = try await qemu(path, scratch)
        defer { other.stop() }
        let file = try await HostFile.open(path)
        let error = await hostError { try await file.lock() }
        #expect(error?.reason.contains("Is another process using the image [\(path)]?") == true)
        #expect(error?.reason.contains("\"write\" lock") == true)
        // Reading beside it is fine, as it is among qemu's programs that share.
        _ = try await open(path, isReadOnly: true)
    }

    @Test(.enabled(if: tool("qemu-nbd") != nil, "needs qemu-nbd"))
    func `lets us write where qemu-nbd only reads`() async throws {
        let scratch = Scratch()
        let path = scratch.file(byteCount: 1 << 20)
        let other = try await qemu(path, scratch, ["-r"])
        defer { other.stop() }
        _ = try await open(path, isReadOnly: false)
    }

    @Test(.enabled(if: tool("qemu-img") != nil, "needs qemu-img"))
    func `keeps anybody from changing the size`() async throws {
        let scratch = Scratch()
        let path = scratch.file(byteCount: 1 << 20)
        let reader = try await open(path, isReadOnly: true)
        #expect(run(tool("qemu-img")!, ["resize", "-f", "raw", path, "2M"]) != 0)
        reader.close()
        #expect(run(tool("qemu-img")!, ["resize", "-f", "raw", path, "2M"]) == 0)
    }
}
