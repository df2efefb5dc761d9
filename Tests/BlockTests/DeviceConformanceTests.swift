import Block
import BlockDeviceConformance
import Testing

@Suite struct `The devices of this room obey the laws` {
    @Test(arguments: [0, 1, 4095, 65_536, 300_001, 1 << 40, UInt64(Int64.max)])
    func `memory`(byteCount: UInt64) async throws {
        try await checkConformance { MemoryDevice(byteCount: byteCount) }
    }

    @Test func `memory, read-only`() async throws {
        try await checkConformance { MemoryDevice(byteCount: 100_000, isReadOnly: true) }
    }

    @Test func `nothing`() async throws {
        try await checkConformance(.forgetsWrites) { NullDevice(byteCount: UInt64(Int64.max)) }
    }

    @Test(arguments: [0, 7, 8, 100_003, UInt64(Int64.max)])
    func `a pattern`(byteCount: UInt64) async throws {
        try await checkConformance { PatternDevice(byteCount: byteCount) }
    }

    @Test(arguments: [1, 512, 4096, 65536] as [UInt32])
    func `blocks, with nothing but reads, writes and flushes`(minimum: UInt32) async throws {
        try await checkConformance(steps: 200) { BlockyDevice(byteCount: 512 << 10, minimum: minimum) }
    }

    @Test(arguments: [512, 4096] as [UInt32])
    func `blocks, with everything`(minimum: UInt32) async throws {
        try await checkConformance(steps: 200) { BlockyDevice(byteCount: 512 << 10, minimum: minimum, abilities: .allNative) }
    }
}

/// A device that breaks one law, to see that the check notices.
private final class Broken: BlockDevice {
    enum Law: CaseIterable {
        case losesWrites, shortRead, zeroesTooMuch, lyingExtents, noExtents, fastChangesBytes, wrongMapping, failingFlush, unevenSize
    }

    let info: DeviceInfo
    let memory = MemoryDevice(byteCount: 100_000)
    let law: Law

    init(_ law: Law) {
        self.law = law
        info = DeviceInfo(
            byteCount: 100_000, blockSize: BlockSize(minimum: law == .unevenSize ? 512 : 1), abilities: .allNative)
    }

    func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        if law == .shortRead, buffer.byteCount > 70_000 { return }
        try await memory.read(at: offset, into: &buffer)
    }

    func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        if law == .losesWrites, offset > 60_000 { return }
        try await memory.write(at: offset, from: bytes, options)
    }

    func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        var range = range
        if law == .zeroesTooMuch, range.end < 100_000 { range = ByteRange(start: range.start, count: range.count + 1)! }
        try await memory.writeZeroes(range, options)
        if law == .fastChangesBytes, options.contains(.fast) { throw BlockError(.unsupported, "too late") }
    }

    func flush() async throws(BlockError) {
        if law == .failingFlush { throw BlockError(.inputOutput, "always") }
    }

    func status(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        if law == .noExtents { return }
        if law == .lyingExtents { extents.append(range.count, [.zero]) }
        try await memory.status(of: range, into: &extents)
    }

    func makeMapper() -> sending (any RangeMapper)? { law == .wrongMapping ? WrongMapper() : nil }
}

private final class WrongMapper: RangeMapper {
    func mapRead(_ range: ByteRange, into segments: inout SegmentList) -> Bool {
        segments.append(.zeroes(count: Int(range.count)))
        return true
    }

    func mapWrite(_ range: ByteRange, into segments: inout SegmentList) -> Bool { false }
}

@Suite struct `The check of the laws` {
    @Test(arguments: Broken.Law.allCases)
    fileprivate func `notices a broken one`(law: Broken.Law) async throws {
        await withKnownIssue {
            try await checkConformance { Broken(law) }
        }
    }
}
