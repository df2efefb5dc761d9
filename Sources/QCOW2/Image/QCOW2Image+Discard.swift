public import Block

extension QCOW2Image {
    /// Frees the clusters that lie in `range` whole; others stay. What is below the image never comes to light: where version 2 of the
    /// format cannot say "zeroes", nothing happens.
    public func discard(_ range: ByteRange) async throws(BlockError) {
        try checkWritable()
        guard options.honorsDiscard else { return }
        try await beginWrite()
        defer { endWrite(range) }
        let size = UInt64(geometry.clusterByteCount)
        let end = range.end == info.byteCount ? range.end : range.end & ~(size - 1)
        let start = (range.start + size - 1) & ~(size - 1)
        guard start < end, let whole = ByteRange(start: start, count: end - start) else { return }
        if header.hasRawDataFile {
            // The data file must read the same without the image: only what is zero there, too, may be called so.
            if data.info.abilities.zeroes == .native { try await zeroThrough(whole, .mayUnmap) } else { try await discardData(whole) }
        } else {
            try await changeClusters(whole, .discard)
        }
    }
}
