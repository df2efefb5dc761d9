import Block
import Synchronization

/// A disk that takes whole blocks only, does little itself, and fails requests that break its rules.
final class BlockyDevice: BlockDevice {
    let info: DeviceInfo
    let memory: MemoryDevice
    let flushCount = Atomic<Int>(0)
    let writeCount = Atomic<Int>(0)

    init(
        byteCount: UInt64, minimum: UInt32, maximum: UInt32 = 64 << 10, abilities: Abilities = Abilities(flush: .native, discard: .native)
    ) {
        memory = MemoryDevice(byteCount: byteCount)
        info = DeviceInfo(
            byteCount: byteCount, blockSize: BlockSize(minimum: minimum, preferred: max(4096, minimum), maximum: maximum),
            abilities: abilities)
    }

    func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        try check(offset, UInt64(buffer.byteCount), isTransfer: true)
        try await memory.read(at: offset, into: &buffer)
    }

    func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        try check(offset, UInt64(bytes.byteCount), isTransfer: true)
        guard info.abilities.durableWrites == .native || !options.contains(.durable) else { throw BlockError(.invalid, "not durable") }
        writeCount.add(1, ordering: .relaxed)
        // Time for others to get in between a read and the write that follows it.
        await Task.yield()
        try await memory.write(at: offset, from: bytes, options)
    }

    func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        try check(range.start, range.count, isTransfer: false)
        guard info.abilities.zeroes == .native else { throw BlockError(.unsupported, "no zeroes") }
        try await memory.writeZeroes(range, options)
    }

    func discard(_ range: ByteRange) async throws(BlockError) {
        try check(range.start, range.count, isTransfer: false)
        try await memory.discard(range)
    }

    func flush() async throws(BlockError) {
        flushCount.add(1, ordering: .relaxed)
    }

    func status(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        try check(range.start, range.count, isTransfer: false)
        try await memory.status(of: range, into: &extents)
    }

    private func check(_ offset: UInt64, _ count: UInt64, isTransfer: Bool) throws(BlockError) {
        guard let range = ByteRange(start: offset, count: count, within: info.byteCount),
            range.isAligned(to: UInt64(info.blockSize.minimum)),
            !isTransfer || count <= UInt64(info.blockSize.maximum)
        else { throw BlockError(.invalid, "\(count) bytes at \(offset) break the rules of this device") }
    }
}

extension BlockDevice {
    func bytes(at offset: UInt64, _ count: Int) async throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xEE, count: count)
        do {
            var span = bytes.mutableSpan
            var raw = span.mutableBytes
            try await read(at: offset, into: &raw)
        }
        return bytes
    }

    func write(_ bytes: [UInt8], at offset: UInt64, _ options: WriteOptions = []) async throws {
        try await write(at: offset, from: bytes.span.bytes, options)
    }

    /// All extents of the device.
    func extents() async throws -> [Extent] {
        var rest = ByteRange(ofDevice: info.byteCount)
        var all = ExtentList(byteCountLimit: info.byteCount)
        while !rest.isEmpty {
            let before = all.byteCount
            try await status(of: rest, into: &all)
            rest = rest.dropFirst(all.byteCount - before)
        }
        return all.extents
    }
}

func range(_ start: UInt64, _ count: UInt64) -> ByteRange { ByteRange(start: start, count: count)! }

func blockError<Result>(_ body: () async throws -> Result) async -> BlockError.Kind? {
    do {
        _ = try await body()
        return nil
    } catch {
        return (error as? BlockError)?.kind
    }
}
