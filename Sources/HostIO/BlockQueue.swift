internal import CHostIO

/// What Linux's sysfs says about the queue of a disk; elsewhere nothing is known.
struct BlockQueue {
    let isRotational: Bool
    /// Most bytes that one "write zeroes" command of the disk covers; 0 when it has none, nil when unknown.
    let zeroesByteLimit: UInt64?

    /// The disk of a device number, which may be that of a partition.
    init(major: UInt32, minor: UInt32) {
        #if os(Linux)
        let base = "/sys/dev/block/\(major):\(minor)"
        // A partition's own directory has no queue; its parent, the disk, has.
        let value = { (name: String) in Self.number("\(base)/queue/\(name)") ?? Self.number("\(base)/../queue/\(name)") }
        isRotational = value("rotational") == 1
        zeroesByteLimit = value("write_zeroes_max_bytes")
        #else
        isRotational = false
        zeroesByteLimit = nil
        #endif
    }

    private static func number(_ path: String) -> UInt64? {
        // SAFETY: Swift gives the string as a C string for the length of the call.
        let descriptor = unsafe chostio_open(path, false, false)
        guard descriptor >= 0 else { return nil }
        defer { _ = chostio_close(descriptor) }
        var digits = [UInt8](repeating: 0, count: 32)
        var span = digits.mutableSpan
        var bytes = unsafe span.mutableBytes
        let count = PositionalIO.read(descriptor, into: BorrowedMemory(&bytes), at: 0)
        guard count > 0 else { return nil }
        return UInt64(String(decoding: digits.prefix(count).prefix { $0 != 0x0A }, as: UTF8.self))
    }
}
