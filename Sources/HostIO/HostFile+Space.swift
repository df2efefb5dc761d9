internal import CHostIO
internal import SystemPackage

/// How zeroes may be made.
public struct ZeroOptions: OptionSet, Sendable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Space may be given back.
    public static let mayUnmap = ZeroOptions(rawValue: 1 << 0)
    /// Only if that is faster than writing zeroes; otherwise ENOTSUP, and nothing has changed.
    public static let fast = ZeroOptions(rawValue: 1 << 1)
    /// On the medium when the call returns.
    public static let durable = ZeroOptions(rawValue: 1 << 2)
}

extension HostFile {
    /// Makes `count` bytes at `offset` read as zeroes, in the best way the file has.
    ///
    /// Files: punch a hole (only with `.mayUnmap`); zero the range; punch and allocate again; write. Disks: the disk's own command for whole
    /// sectors, and writes for the rest. Without `.mayUnmap` the space stays allocated.
    public func writeZeroes(at offset: UInt64, count: UInt64, _ options: ZeroOptions = []) async throws(HostError) {
        try checkNothingLost("write zeroes")
        guard count > 0 else { return }
        let result = await io.call { self.zero(offset, count, options) }
        guard result >= 0 else { throw error(result, "write zeroes") }
        if options.contains(.durable) { try await flush() }
    }

    /// Gives back the space of `count` bytes at `offset`; afterwards a file reads as zeroes there, a disk as anything. Sectors that are
    /// only partly in the range stay. Where the host has no such operation, nothing happens.
    public func discard(at offset: UInt64, count: UInt64) async throws(HostError) {
        try checkNothingLost("discard")
        let lack: Lack = kind == .blockDevice ? .discard : .punchHole
        guard count > 0, !lacks(lack) else { return }
        let result = await io.call { () -> Int in
            guard self.kind == .blockDevice else { return self.punchHole(offset, count) }
            let (first, last) = self.wholeSectors(offset, count)
            guard first < last else { return 0 }
            return PositionalIO.retrying { chostio_device_discard(self.descriptor, first, last - first) }
        }
        guard result < 0, !isLack(of: lack, result) else { return }
        throw error(result, "discard")
    }

    /// Whether the host gave back space, or might: false once it has refused.
    public var canDiscard: Bool { !lacks(kind == .blockDevice ? .discard : .punchHole) }

    /// Asks for the bytes to be brought into the page cache. Does nothing in direct mode.
    public func prefetch(at offset: UInt64, count: UInt64) async throws(HostError) {
        guard count > 0, direct == nil, !isInMemory else { return }
        let result = await io.call { PositionalIO.retrying { chostio_will_need(self.descriptor, offset, count) } }
        guard result < 0, !PositionalIO.isUnsupported(result) else { return }
        throw error(result, "prefetch")
    }

    // MARK: On the pool's threads

    private func zero(_ offset: UInt64, _ count: UInt64, _ options: ZeroOptions) -> Int {
        kind == .blockDevice ? zeroDisk(offset, count, options) : zeroFile(offset, count, options)
    }

    private func zeroFile(_ offset: UInt64, _ count: UInt64, _ options: ZeroOptions) -> Int {
        if options.contains(.mayUnmap), !lacks(.punchHole) {
            let result = punchHole(offset, count)
            if !isLack(of: .punchHole, result) { return result }
        }
        if !lacks(.zeroRange) {
            let result = PositionalIO.retrying { chostio_zero_range(descriptor, offset, count) }
            if !isLack(of: .zeroRange, result) { return result }
        }
        // tmpfs punches but has no "zero range". Allocating comes first: should room be short, nothing has changed.
        if !lacks(.punchHole), !lacks(.allocate) {
            var result = allocate(offset, count)
            if !isLack(of: .allocate, result) {
                guard result >= 0 else { return result }
                result = punchHole(offset, count)
                if !isLack(of: .punchHole, result) {
                    return result < 0 ? result : allocate(offset, count)
                }
            }
        }
        if options.contains(.fast) { return -Int(Errno.notSupported.rawValue) }
        return writeZeroBuffers(offset, count)
    }

    private func zeroDisk(_ offset: UInt64, _ count: UInt64, _ options: ZeroOptions) -> Int {
        let (first, last) = wholeSectors(offset, count)
        if options.contains(.fast) {
            // BLKZEROOUT writes when the disk has no command, so it is fast only for a disk that has one.
            guard first < last, zeroesByteLimit > 0 else { return -Int(Errno.notSupported.rawValue) }
        }
        guard first < last, !lacks(.zeroOut) else { return writeZeroBuffers(offset, count) }
        // Punching lets the disk unmap; it fails, changing nothing, when the disk has no command for it.
        var result = -Int(Errno.notSupported.rawValue)
        if options.contains(.mayUnmap), !lacks(.punchHole) {
            result = punchHole(first, last - first)
            _ = isLack(of: .punchHole, result)
        }
        if PositionalIO.isUnsupported(result) {
            result = PositionalIO.retrying { chostio_device_zero_out(descriptor, first, last - first) }
            if isLack(of: .zeroOut, result) { return writeZeroBuffers(offset, count) }
        }
        guard result >= 0 else { return result }
        result = writeZeroBuffers(offset, first - offset)
        return result < 0 ? result : writeZeroBuffers(last, offset + count - last)
    }

    private var zeroesByteLimit: UInt64 {
        var status = chostio_stat()
        // SAFETY: the call fills the struct and does not keep its address.
        guard unsafe chostio_stat(descriptor, &status) >= 0 else { return 0 }
        return BlockQueue(major: status.node_major, minor: status.node_minor).zeroesByteLimit ?? 0
    }

    private func punchHole(_ offset: UInt64, _ count: UInt64) -> Int {
        PositionalIO.retrying { chostio_punch_hole(descriptor, offset, count) }
    }

    private func allocate(_ offset: UInt64, _ count: UInt64) -> Int {
        PositionalIO.retrying { chostio_allocate(descriptor, offset, count) }
    }

    private func wholeSectors(_ offset: UInt64, _ count: UInt64) -> (first: UInt64, last: UInt64) {
        let mask = UInt64(sectorByteCount) - 1
        return ((offset + mask) & ~mask, (offset + count) & ~mask)
    }

    private func writeZeroBuffers(_ offset: UInt64, _ count: UInt64) -> Int {
        guard count > 0 else { return 0 }
        let size = Int(min(count, 1 << 20))
        let zeroes = UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 4096)
        defer { unsafe zeroes.deallocate() }
        // SAFETY: allocated above, all of it made bytes of 0, and freed when all writes are over.
        unsafe zeroes.initializeMemory(as: UInt8.self, repeating: 0)
        let memory = unsafe BorrowedMemory(zeroes)
        var done: UInt64 = 0
        while done < count {
            let part = memory.part(0, Int(min(UInt64(size), count - done)))
            let result =
                direct?.write(from: part, at: offset + done, dsync: false)
                ?? PositionalIO.write(descriptor, from: part, at: offset + done, dsync: false)
            guard result >= 0 else { return result }
            done += UInt64(part.count)
        }
        return 0
    }
}
