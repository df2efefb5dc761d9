/// Arrays in and out of a device, however long: for tables and copies, not for requests.
extension BlockDevice {
    /// Reads `count` bytes, in pieces of at most `blockSize.maximum`.
    ///
    /// - Precondition: the device takes requests of this alignment (`blockSize.minimum`; `Emulation` takes all).
    /// - Throws: what the device says, also when the bytes are not all inside of it.
    public func bytes(at offset: UInt64, count: Int) async throws(BlockError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        try await fill(&bytes, at: offset)
        return bytes
    }

    /// Reads as many bytes as `bytes` has. See `bytes(at:count:)`.
    public func fill(_ bytes: inout [UInt8], at offset: UInt64) async throws(BlockError) {
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

    /// Writes all of `bytes`, in pieces of at most `blockSize.maximum`; what was written before an error stays.
    ///
    /// - Precondition: as `bytes(at:count:)`.
    /// - Throws: what the device says.
    public func store(_ bytes: [UInt8], at offset: UInt64) async throws(BlockError) {
        let limit = Int(info.blockSize.maximum)
        var done = 0
        while done < bytes.count {
            let count = min(limit, bytes.count - done)
            try await write(at: offset + UInt64(done), from: bytes.rawBytes.extracting(done..<done + count), [])
            done += count
        }
    }
}
