#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// The verdict of `qemu-img check`, where it is installed, on a bounded sample of the images that a test has: every 25th.
final class QEMUImg {
    private let directory: String
    private var seen = 0
    private var left: Int

    /// Nil where there is no qemu-img.
    ///
    /// - Parameter limit: how many images are looked at.
    init?(limit: Int) throws {
        guard try Self.run("qemu-img --version").status == 0 else { return nil }
        left = limit
        var template = Array("/tmp/swift-nbd-qemu-img.XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw HostFailure(code: errno) }
        directory = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        // What images of tests stand on; nobody looks into it.
        for name in ["base", "data"] { try write([], to: "\(directory)/\(name)") }
    }

    deinit {
        for name in ["base", "data", "image"] { remove("\(directory)/\(name)") }
        rmdir(directory)
    }

    /// What is wrong with the image; nil when it is in order or has only lost clusters, or is not in the sample.
    ///
    /// - Parameter isHarmless: says of a line that begins with ERROR that it does not count.
    func finding(in bytes: [UInt8], unless isHarmless: (Substring) -> Bool = { _ in false }) throws -> String? {
        seen += 1
        guard seen % 25 == 1, left > 0 else { return nil }
        left -= 1
        remove("\(directory)/image")
        try write(bytes, to: "\(directory)/image")
        // There: names of data files count from the working directory.
        let (status, text) = try Self.run("cd \(directory) && qemu-img check -f qcow2 image")
        guard status != 0, status != 3 else { return nil }
        let errors = text.split(separator: "\n").filter { $0.hasPrefix("ERROR") }
        return status == 2 && !errors.isEmpty && errors.allSatisfy(isHarmless) ? nil : "qemu-img check gives \(status): \(errors.first ?? text[...])"
    }

    /// The exit status of a command (-1: a signal ended it), and all that it says.
    private static func run(_ command: String) throws -> (status: Int32, text: String) {
        guard let pipe = popen("\(command) 2>&1", "r") else { throw HostFailure(code: errno) }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 4096)
        while case let count = fread(&buffer, 1, buffer.count, pipe), count > 0 { bytes += buffer[..<count] }
        let status = pclose(pipe)
        return (status & 0x7f == 0 ? status >> 8 & 0xff : -1, String(decoding: bytes, as: UTF8.self))
    }
}
