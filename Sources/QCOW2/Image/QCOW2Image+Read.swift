public import Block

extension QCOW2Image {
    public func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        let pin = metadata.quarantine.pin()
        defer { metadata.quarantine.unpin(pin) }
        var done = 0
        while done < buffer.byteCount {
            let guest = offset + UInt64(done)
            let run = try await run(at: guest, limit: UInt64(buffer.byteCount - done))
            var part = buffer._mutatingExtracting(done..<done + Int(run.byteCount))
            try await read(run, at: guest, into: &part)
            done += Int(run.byteCount)
        }
    }

    private func read(_ run: Run, at guest: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        switch run.kind {
        case .zero: buffer.fillWithZeroes()
        case .unallocated: try await readBacking(at: guest, into: &buffer)
        case .data(let host): try await readData(at: host, into: &buffer)
        case .compressed(let place):
            let cluster = try await expand(place)
            let start = Int(guest & geometry.clusterMask)
            buffer.copy(from: cluster.rawBytes.extracting(start..<start + buffer.byteCount))
        case .damaged: throw Self.damaged(guest)
        }
    }

    /// Bytes of the file below, and zeroes where it ends.
    private func readBacking(at guest: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        let count = guest < backingByteCount ? Int(min(UInt64(buffer.byteCount), backingByteCount - guest)) : 0
        if let backing, count > 0 {
            var part = buffer._mutatingExtracting(0..<count)
            try await backing.read(at: guest, into: &part)
        }
        if count < buffer.byteCount {
            var rest = buffer._mutatingExtracting(count..<buffer.byteCount)
            rest.fillWithZeroes()
        }
    }

    /// Bytes of data clusters. A file may end inside of its last cluster: what is missing reads as zeroes.
    private func readData(at host: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        let size = data.currentByteCount
        let wanted = UInt64(buffer.byteCount)
        if host <= size, wanted <= size - host { return try await data.read(at: host, into: &buffer) }
        let count = host < size ? Int(size - host) : 0
        guard hasDataFile || geometry.clusterCount(of: host + wanted) <= geometry.clusterCount(of: size) else {
            throw BlockError(.inputOutput, "the image is damaged: the cluster at \(host.hex) lies beyond the end of the file")
        }
        if count > 0 {
            var part = buffer._mutatingExtracting(0..<count)
            try await data.read(at: host, into: &part)
        }
        var rest = buffer._mutatingExtracting(count..<buffer.byteCount)
        rest.fillWithZeroes()
    }

    private func expand(_ place: CompressedCluster) async throws(BlockError) -> [UInt8] {
        if let cluster = expanded[place] { return cluster }
        let size = metadata.file.currentByteCount
        guard place.hostOffset < size else {
            throw BlockError(.inputOutput, "the image is damaged: a compressed cluster at \(place.hostOffset.hex) lies beyond the end of the file")
        }
        // The last sector may be cut off by the end of the file.
        let packed = try await metadata.file.bytes(
            at: place.hostOffset, count: Int(min(UInt64(place.byteCount), size - place.hostOffset)))
        do throws(FormatError) {
            let cluster = try await Self.expand(packed, header.compression, geometry.clusterByteCount)
            expanded.insert(cluster, at: place)
            return cluster
        } catch {
            throw BlockError(.inputOutput, "\(error.detail), at \(place.hostOffset.hex)")
        }
    }

    /// On another thread: it takes so long that the clients of an event loop would notice.
    @concurrent private static func expand(_ packed: [UInt8], _ type: CompressionType, _ byteCount: Int) async throws(FormatError) -> [UInt8] {
        var cluster = [UInt8](repeating: 0, count: byteCount)
        var failure: FormatError?
        cluster.withMutableRawBytes { bytes in
            do throws(FormatError) {
                try type.expand(packed.rawBytes, into: &bytes)
            } catch {
                failure = error
            }
        }
        if let failure { throw failure }
        return cluster
    }

    public func prefetch(_ range: ByteRange) async throws(BlockError) {
        var rest = range
        while !rest.isEmpty {
            let run = try await run(at: rest.start, limit: rest.count)
            switch run.kind {
            case .data(let host):
                if let range = ByteRange(start: host, count: run.byteCount, within: data.currentByteCount) { try await data.prefetch(range) }
            case .unallocated:
                let inside = rest.prefix(run.byteCount).clamped(to: ByteRange(ofDevice: backingByteCount))
                if let backing, !inside.isEmpty { try await backing.prefetch(inside) }
            case .compressed(let place):
                let size = metadata.file.currentByteCount
                let range = ByteRange(start: min(place.hostOffset, size), count: UInt64(place.byteCount))
                let inside = range?.clamped(to: ByteRange(ofDevice: size))
                if let inside, !inside.isEmpty { try await metadata.file.prefetch(inside) }
            case .zero, .damaged: break
            }
            rest = rest.dropFirst(run.byteCount)
        }
    }
}
