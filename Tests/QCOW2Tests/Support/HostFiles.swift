#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Makes a file that nobody else can open.
func write(_ bytes: [UInt8], to path: String) throws {
    let descriptor = open(path, O_CREAT | O_EXCL | O_WRONLY, 0o600)
    guard descriptor >= 0 else { throw HostFailure(code: errno) }
    defer { close(descriptor) }
    var done = 0
    while done < bytes.count {
        let count = bytes[done...].withUnsafeBytes { pwrite(descriptor, $0.baseAddress, $0.count, off_t(done)) }
        guard count > 0 else { throw HostFailure(code: errno) }
        done += count
    }
}

func remove(_ path: String) { unlink(path) }

struct HostFailure: Error {
    var code: Int32
}
