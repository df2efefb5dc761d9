internal import Block

#if canImport(Darwin)
internal import Darwin
#elseif canImport(Musl)
internal import Musl
#else
internal import Glibc
#endif

/// Comparing megabytes byte by byte takes most of a check's time in a debug build; the C library's way takes none.
func areEqual(_ left: [UInt8], _ right: [UInt8]) -> Bool {
    // SAFETY: both arrays have `count` bytes.
    unsafe left.count == right.count && (left.isEmpty || memcmp(left, right, left.count) == 0)
}

/// Laws that one request, or a few, can show.
extension Laws {
    func checkInfo() throws {
        try law(info.byteCount <= UInt64(Int64.max), "a device has at most 2^63 - 1 bytes, not \(info.byteCount)")
        try law(info.byteCount % minimum == 0, "\(info.byteCount) bytes are no whole number of blocks of \(minimum)")
        try law(info.abilities.flush != .emulated, "nothing can emulate a flush")
        if info.isReadOnly { return }
        let fast = info.abilities.fastZeroes == .native
        try law(!fast || info.abilities.zeroes == .native, "fast zeroes are native, zeroes are not")
    }

    /// First and last blocks, the longest request, and none at all.
    func checkBoundaries() async throws {
        let size = info.byteCount
        let longest = min(UInt64(info.blockSize.maximum), size, 4 << 20) & ~(minimum - 1)
        for count in [0, minimum, min(8 * minimum, size), longest] where count <= size {
            for offset in Set([0, (size - count) & ~(minimum - 1)]) where offset <= size - count {
                let first = try await read(offset, count)
                let second = try await read(offset, count)
                try law(areEqual(first, second), "\(count) bytes at \(offset) read differently the second time")
            }
        }
        try await must("a flush") { try await device.flush() }
    }

    func checkReadOnly() async throws {
        guard info.byteCount > 0 else { return }
        let block = [UInt8](repeating: 0xA5, count: Int(minimum))
        let before = try await read(0, minimum)
        let range = ByteRange(ofDevice: minimum)
        try await refused("a write to a read-only device", as: .readOnly) { try await write(block, at: 0, []) }
        try await refused("zeroing a read-only device", as: .readOnly, .unsupported) { try await device.writeZeroes(range, []) }
        if isEmulated {
            try await refused("discarding on a read-only device", as: .readOnly) { try await device.discard(range) }
        }
        try law(try await read(0, minimum) == before, "a refused write changed a read-only device")
    }

    /// Every combination of options, on data.
    func checkZeroes() async throws {
        let unit = max(minimum, UInt64(info.blockSize.preferred))
        guard info.byteCount >= 4 * unit, let range = ByteRange(start: unit, count: 2 * unit) else { return }
        let data = [UInt8](repeating: 0x5A, count: Int(4 * unit))
        for raw in UInt8(0)..<8 {
            let options = understood(WriteOptions(rawValue: raw))
            try await must("a write before zeroing") { try await write(data, at: 0, []) }
            let isZeroed = try await zero(range, options)
            guard keepsWrites else { continue }
            let expected = isZeroed ? [UInt8](repeating: 0, count: Int(2 * unit)) : Array(data.prefix(Int(2 * unit)))
            let middle = try await read(unit, 2 * unit)
            // S-CMD-16: what is refused for not being fast has changed nothing.
            try law(areEqual(middle, expected), isZeroed ? "zeroed bytes are not zero (\(options))" : "a refused zeroing changed bytes")
            let head = try await read(0, unit)
            let tail = try await read(3 * unit, unit)
            try law(
                areEqual(head, Array(data.prefix(Int(unit)))) && areEqual(tail, head), "zeroing changed bytes beside its range (\(options))"
            )
        }
    }

    /// Neighbours written at the same time all arrive.
    func checkConcurrentWrites() async throws {
        // Odd lengths where the device takes them: neighbours then share sectors and pages.
        let unit = minimum == 1 ? 1537 : minimum
        let count = min(24, info.byteCount / unit)
        let device = device
        for round in UInt8(0)..<4 {
            let options = understood(round % 2 == 1 ? .durable : [])
            let failures = await withTaskGroup(of: BlockError?.self) { group in
                for index in 0..<count {
                    group.addTask {
                        let bytes = [UInt8](repeating: UInt8(index) &+ round &* 31 | 1, count: Int(unit))
                        do throws(BlockError) {
                            try await device.write(at: index * unit, from: bytes.rawBytes, options)
                            return nil
                        } catch {
                            return error
                        }
                    }
                }
                var failures: [BlockError] = []
                for await case let failure? in group { failures.append(failure) }
                return failures
            }
            try law(failures.isEmpty, "concurrent writes failed: \(failures.first?.detail ?? "")")
            guard keepsWrites else { continue }
            for index in 0..<count {
                let bytes = try await read(index * unit, unit)
                let expected = [UInt8](repeating: UInt8(index) &+ round &* 31 | 1, count: Int(unit))
                try law(areEqual(bytes, expected), "a write was lost beside concurrent ones at \(index * unit)")
            }
        }
    }

    /// Ranges that do not lie in the device; only `Emulation` promises to check.
    func checkRefusals() async throws {
        let size = info.byteCount
        let before = try await read(size - min(size, 4096), min(size, 4096))
        for (offset, count) in [(size, 1), (size &+ 1, 0), (size - min(size, 1), 2), (.max, 1), (0, size &+ 1)] as [(UInt64, UInt64)] {
            if count <= 1 << 20 {
                let bytes = [UInt8](repeating: 1, count: Int(count))
                try await refused("a read of \(count) at \(offset)", as: .outOfRange) { _ = try await readUnchecked(offset, count) }
                try await refused("a write of \(count) at \(offset)", as: .outOfRange, .readOnly) { try await write(bytes, at: offset, []) }
            }
            guard let range = ByteRange(start: offset, count: count) else { continue }
            try await refused("zeroing \(range)", as: .outOfRange, .readOnly) { try await device.writeZeroes(range, []) }
            try await refused("discarding \(range)", as: .outOfRange, .readOnly) { try await device.discard(range) }
            try await refused("prefetching \(range)", as: .outOfRange) { try await device.prefetch(range) }
            try await refused("the status of \(range)", as: .outOfRange) {
                var extents = ExtentList(byteCountLimit: max(count, 1))
                try await device.status(of: range, into: &extents)
            }
        }
        try law(try await read(size - min(size, 4096), min(size, 4096)) == before, "a refused request changed the device")
    }
}

// MARK: - Requests with arrays

extension Laws {
    func read(_ offset: UInt64, _ count: UInt64) async throws -> [UInt8] {
        try await must("reading \(count) bytes at \(offset)") { try await readUnchecked(offset, count) }
    }

    func readUnchecked(_ offset: UInt64, _ count: UInt64) async throws -> [UInt8] {
        // Filled with something, so that bytes which the device forgot to fill are seen.
        var bytes = [UInt8](repeating: 0xEE, count: Int(count))
        var done = 0
        repeat {
            let length = min(bytes.count - done, Int(info.blockSize.maximum))
            var span = bytes.mutableSpan
            // SAFETY: every bit pattern is a byte.
            var raw = unsafe span.mutableBytes
            var part = raw._mutatingExtracting(done..<done + length)
            try await device.read(at: offset + UInt64(done), into: &part)
            done += length
        } while done < bytes.count
        return bytes
    }

    /// Returns false when the device says, and may say, that it does not do this.
    func zero(_ range: ByteRange, _ options: WriteOptions) async throws -> Bool {
        do {
            try await device.writeZeroes(range, understood(options))
            return true
        } catch {
            let mayRefuse = options.contains(.fast) || info.abilities.zeroes != .native
            try law(error.kind == .unsupported && mayRefuse, "zeroing \(range) with options \(options.rawValue) failed: \(error)")
            return false
        }
    }

    func write(_ bytes: [UInt8], at offset: UInt64, _ options: WriteOptions) async throws {
        var done = 0
        repeat {
            let length = min(bytes.count - done, Int(info.blockSize.maximum))
            let part = bytes.rawBytes.extracting(done..<done + length)
            try await device.write(at: offset + UInt64(done), from: part, understood(options))
            done += length
        } while done < bytes.count
    }

    /// The options that the device has said it understands.
    func understood(_ options: WriteOptions) -> WriteOptions {
        info.abilities.durableWrites == .native ? options : options.subtracting(.durable)
    }
}
