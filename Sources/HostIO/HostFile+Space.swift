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
        if isGrowable, count <= UInt64.max - offset, offset + count > currentByteCount {
            // Only a write makes a file longer without a race: a byte of our own range, which is then zeroed with the rest.
            let zero: [UInt8] = [0]
            let span = zero.span
            // SAFETY: every bit pattern is a byte.
            try await write(at: offset + count - 1, from: unsafe span.bytes)
        }
        switch await io.call({ self.zero(offset, count, options) }) {
        case .done(let result): guard result >= 0 else { throw error(result, "write zeroes") }
        case .mustWrite(let ranges):
            for range in ranges {
                let result = await writeZeroBuffers(range)
                guard result >= 0 else { throw error(result, "write zeroes") }
            }
        }
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

    private func writeZeroBuffers(_ range: Range<UInt64>) async -> Int {
        let size = Int(min(range.upperBound - range.lowerBound, 1 << 20))
        let zeroes = UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 4096)
        defer { unsafe zeroes.deallocate() }
        unsafe zeroes.initializeMemory(as: UInt8.self, repeating: 0)
        // SAFETY: freed when all writes are over.
        let memory = unsafe BorrowedMemory(zeroes)
        var position = range.lowerBound
        while position < range.upperBound {
            let part = memory.part(0, Int(min(UInt64(size), range.upperBound - position)))
            let result =
                if let direct {
                    await direct.write(from: part, at: position, dsync: false, by: io)
                } else {
                    await io.write(descriptor, from: part, at: position, dsync: false, isDirect: false)
                }
            guard result >= 0 else { return result }
            position += UInt64(part.count)
        }
        return 0
    }

    // MARK: On the pool's threads

    private enum Zeroing {
        /// 0 or a negated errno.
        case done(Int)
        /// What is left has to be written.
        case mustWrite([Range<UInt64>])
    }

    private func zero(_ offset: UInt64, _ count: UInt64, _ options: ZeroOptions) -> Zeroing {
        kind == .blockDevice ? zeroDisk(offset, count, options) : zeroFile(offset, count, options)
    }

    private func zeroFile(_ offset: UInt64, _ count: UInt64, _ options: ZeroOptions) -> Zeroing {
        if options.contains(.mayUnmap), !lacks(.punchHole) {
            let result = punchHole(offset, count)
            if !isLack(of: .punchHole, result) { return .done(result) }
        }
        if !lacks(.zeroRange) {
            let result = PositionalIO.retrying { chostio_zero_range(descriptor, offset, count) }
            if !isLack(of: .zeroRange, result) { return .done(result) }
        }
        // tmpfs punches but has no "zero range". Allocating comes first: should room be short, nothing has changed.
        if !lacks(.punchHole), !lacks(.allocate) {
            var result = allocate(offset, count)
            if !isLack(of: .allocate, result) {
                guard result >= 0 else { return .done(result) }
                result = punchHole(offset, count)
                if !isLack(of: .punchHole, result) {
                    return .done(result < 0 ? result : allocate(offset, count))
                }
            }
        }
        if options.contains(.fast) { return .done(-Int(Errno.notSupported.rawValue)) }
        return .mustWrite([offset..<offset + count])
    }

    private func zeroDisk(_ offset: UInt64, _ count: UInt64, _ options: ZeroOptions) -> Zeroing {
        let (first, last) = wholeSectors(offset, count)
        if options.contains(.fast) {
            // BLKZEROOUT writes when the disk has no command, so it is fast only for a disk that has one.
            guard first < last, zeroesByteLimit > 0 else { return .done(-Int(Errno.notSupported.rawValue)) }
        }
        guard first < last, !lacks(.zeroOut) else { return .mustWrite([offset..<offset + count]) }
        // Punching lets the disk unmap; it fails, changing nothing, when the disk has no command for it.
        var result = -Int(Errno.notSupported.rawValue)
        if options.contains(.mayUnmap), !lacks(.punchHole) {
            result = punchHole(first, last - first)
            _ = isLack(of: .punchHole, result)
        }
        if PositionalIO.isUnsupported(result) {
            result = PositionalIO.retrying { chostio_device_zero_out(descriptor, first, last - first) }
            if isLack(of: .zeroOut, result) { return .mustWrite([offset..<offset + count]) }
        }
        return result < 0 ? .done(result) : .mustWrite([offset..<first, last..<offset + count])
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
}
