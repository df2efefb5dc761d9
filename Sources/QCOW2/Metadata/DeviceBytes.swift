internal import Block

/// Arrays in and out of a device, for tables.
extension BlockDevice {
    /// - Throws: what the device says; `.inputOutput` also when the bytes are not all inside of it.
    func bytes(at offset: UInt64, count: Int) async throws(BlockError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        try await fill(&bytes, at: offset)
        return bytes
    }

    /// Reads as many bytes as `bytes` has.
    func fill(_ bytes: inout [UInt8], at offset: UInt64) async throws(BlockError) {
        guard !bytes.isEmpty else { return }
        var span = bytes.mutableSpan
        // SAFETY: every bit pattern is a byte.
        var raw = unsafe span.mutableBytes
        let limit = Int(info.blockSize.maximum)
        var done = 0
        while done < raw.byteCount {
            let count = min(limit, raw.byteCount - done)
            var part = raw._mutatingExtracting(done..<done + count)
            try await read(at: offset + UInt64(done), into: &part)
            done += count
        }
    }

    /// Writes all of `bytes`, in pieces that the device takes.
    func store(_ bytes: [UInt8], at offset: UInt64) async throws(BlockError) {
        let limit = Int(info.blockSize.maximum)
        var done = 0
        while done < bytes.count {
            let count = min(limit, bytes.count - done)
            try await write(at: offset + UInt64(done), from: bytes.rawBytes.extracting(done..<done + count), [])
            done += count
        }
    }
}

extension [UInt8] {
    /// The bytes as big-endian words; a rest of less than eight is left out.
    var bigEndianWords: [UInt64] {
        let bytes = rawBytes
        return (0..<count / 8).map { bytes.bigEndian(at: $0 * 8) }
    }

    init(bigEndianWords words: some Sequence<UInt64>, count: Int) {
        self.init(repeating: 0, count: count * 8)
        var span = mutableSpan
        // SAFETY: every bit pattern is a byte.
        var raw = unsafe span.mutableBytes
        var index = 0
        for word in words where index < count {
            raw.store(bigEndian: word, at: index * 8)
            index += 1
        }
    }

    /// The bytes, to be changed in place.
    mutating func withMutableRawBytes<Result>(_ body: (inout MutableRawSpan) -> Result) -> Result {
        var span = mutableSpan
        // SAFETY: every bit pattern is a byte.
        var raw = unsafe span.mutableBytes
        return body(&raw)
    }
}
