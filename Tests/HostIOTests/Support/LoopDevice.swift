#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// A block device over a file, for as long as the object lives. Needs root.
final class LoopDevice {
    static var isAvailable: Bool { geteuid() == 0 && tool("losetup") != nil && access("/dev/loop-control", W_OK) == 0 }

    let path: String

    /// Nil when the machine gives none.
    init?(over file: String, sector: Int = 512) {
        guard let losetup = tool("losetup"), let output = popen("\(losetup) --show --sector-size \(sector) -f '\(file)' 2>/dev/null", "r")
        else { return nil }
        var line = [CChar](repeating: 0, count: 256)
        let isThere = fgets(&line, 256, output) != nil
        guard pclose(output) == 0, isThere else { return nil }
        path = String(decoding: line.prefix { $0 > 32 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit {
        _ = run(tool("losetup")!, ["-d", path])
    }
}
