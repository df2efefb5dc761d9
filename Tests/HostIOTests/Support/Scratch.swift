#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// A directory that goes with the object.
final class Scratch: Sendable {
    let path: String

    /// - Parameter parent: a directory of the file system to test on.
    init(in parent: String = "/tmp") {
        var template = Array("\(parent)/hostio.XXXXXX".utf8CString)
        let made = template.withUnsafeMutableBufferPointer { mkdtemp($0.baseAddress!) != nil }
        precondition(made, "cannot make a directory in \(parent)")
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit {
        _ = run("/bin/rm", ["-rf", path])
    }

    /// Makes a file of `byteCount` bytes: a hole, or `contents`.
    func file(_ name: String = "disk", byteCount: Int = 0, contents: [UInt8] = []) -> String {
        let file = "\(path)/\(name)"
        let descriptor = open(file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        precondition(descriptor >= 0, "cannot create \(file)")
        defer { close(descriptor) }
        let written = contents.withUnsafeBytes { pwrite(descriptor, $0.baseAddress, $0.count, 0) }
        precondition(written == contents.count)
        precondition(ftruncate(descriptor, off_t(max(byteCount, contents.count))) == 0)
        return file
    }
}
