internal import CHostIO
internal import SystemPackage

extension HostFile {
    /// A run of bytes that is either allocated or not.
    public struct Run: Equatable, Sendable {
        /// Length in bytes, never 0.
        public var count: UInt64
        /// Takes no space, and reads as zeroes.
        public var isHole: Bool

        public init(count: UInt64, isHole: Bool) {
            self.count = count
            self.isHole = isHole
        }
    }

    /// The holes (SEEK_HOLE) and data of `count` bytes at `offset`, at most `limit` runs: they may end before the range does.
    ///
    /// A disk, or a file system that cannot tell, is all data. Bytes after the end of a file that shrank are data too: reading them fails.
    public func runs(at offset: UInt64, count: UInt64, limit: Int) async throws(HostError) -> [Run] {
        guard count > 0, limit > 0 else { return [] }
        guard kind == .regular, !lacks(.seekData) else { return [Run(count: count, isHole: false)] }
        let result = await io.call { () -> Result<[Run], HostError> in
            do throws(HostError) {
                return .success(try self.seekRuns(from: offset, to: offset + count, limit: limit))
            } catch {
                return .failure(error)
            }
        }
        return try result.get()
    }

    private func seekRuns(from start: UInt64, to end: UInt64, limit: Int) throws(HostError) -> [Run] {
        var runs: [Run] = []
        var position = start
        while position < end, runs.count < limit {
            let data = try seek(position, chostio_seek_data)
            if data != position {
                // No data behind `position`: a trailing hole, as long as the file still is.
                let next = if let data { data } else { max(try fileEnd(), position) }
                let stop = min(next, end)
                if stop > position { runs.append(Run(count: stop - position, isHole: true)) }
                position = stop
                if data == nil, position < end, runs.count < limit {
                    runs.append(Run(count: end - position, isHole: false))
                    position = end
                }
                continue
            }
            // A hole at the same place: somebody punched it between the two calls. One byte of data is a safe answer that goes on.
            let hole = max((try seek(position, chostio_seek_hole)) ?? end, position + 1)
            // A file system that cannot tell gives the same place again and again.
            let stop = lacks(.seekData) ? end : min(hole, end)
            if let last = runs.last, !last.isHole {
                runs[runs.count - 1].count += stop - position
            } else {
                runs.append(Run(count: stop - position, isHole: false))
            }
            position = stop
        }
        return runs
    }

    /// Returns nil for ENXIO: nothing of that sort from `offset` on.
    private func seek(_ offset: UInt64, _ call: (Int32, UInt64) -> Int64) throws(HostError) -> UInt64? {
        let result = call(descriptor, offset)
        if result >= 0 { return UInt64(result) }
        let code = Errno(rawValue: CInt(-result))
        if code == .noSuchAddressOrDevice { return nil }
        if code == .invalidArgument || PositionalIO.isUnsupported(Int(result)) {
            // The kernel gives every file at least "all data"; this is an odd file system.
            remember(lackOf: .seekData)
            return offset
        }
        throw error(Int(result), "find holes")
    }

    private func fileEnd() throws(HostError) -> UInt64 {
        var status = chostio_stat()
        // SAFETY: the call fills the struct and does not keep its address.
        let result = unsafe chostio_stat(descriptor, &status)
        guard result >= 0 else { throw error(Int(result), "find holes") }
        return status.size
    }
}
