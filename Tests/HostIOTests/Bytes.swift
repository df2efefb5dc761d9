import HostIO

extension HostFile {
    /// Reads `count` bytes at `offset` through the waiting face.
    func bytes(at offset: UInt64, _ count: Int) async throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xEE, count: count)
        do {
            var span = bytes.mutableSpan
            var raw = span.mutableBytes
            try await read(at: offset, into: &raw)
        }
        return bytes
    }

    /// The same through the face that never waits; nil when it says no.
    func bytesNow(at offset: UInt64, _ count: Int) -> [UInt8]? {
        var bytes = [UInt8](repeating: 0xEE, count: count)
        var span = bytes.mutableSpan
        var raw = span.mutableBytes
        return readNow(at: offset, into: &raw) ? bytes : nil
    }

    func writeNow(_ bytes: [UInt8], at offset: UInt64) -> Bool {
        writeNow(at: offset, from: bytes.span.bytes)
    }

    func write(_ bytes: [UInt8], at offset: UInt64, durable: Bool = false) async throws {
        try await write(at: offset, from: bytes.span.bytes, durable: durable)
    }
}

/// Bytes that differ from their neighbours and from one `seed` to the next.
func pattern(_ count: Int, seed: Int = 0) -> [UInt8] {
    // By words, and without closures: in a debug build a byte at a time takes longer than the disk.
    var words = [UInt64](repeating: 0, count: count / 8 + 1)
    var index = 0
    while index < words.count {
        words[index] = UInt64(truncatingIfNeeded: index &+ seed &+ 1) &* 0x9E37_79B9_7F4A_7C15 | 0x0101_0101_0101_0101
        index += 1
    }
    return words.withUnsafeBytes { [UInt8]($0.prefix(count)) }
}
