import Block
import BlockDrivers
import Testing

@Suite struct `A window` {
    @Test func `to the end of a file becomes longer with it, one of a given length does not`() async throws {
        let scratch = Scratch()
        let file = try await RawFile.open(scratch.file(byteCount: 3000), RawOptions(isGrowable: true))
        let open = try RawWindow(file, offset: 1000)
        #expect(open.currentByteCount == 2000)
        try await open.resize(to: 5000)
        #expect((open.currentByteCount, file.currentByteCount) == (5000, 6000))
        try await open.write([7], at: 4999)
        #expect(try await file.bytes(at: 5999, 1) == [7])
        let fixed = try RawWindow(file, offset: 1000, byteCount: 2000)
        #expect(await blockError { try await fixed.resize(to: 2001) }?.kind == .unsupported)
        #expect(await blockError { try await fixed.write([7], at: 2000) }?.kind == .outOfRange)
        #expect(fixed.currentByteCount == 2000)
    }

    // S-EXP-07
    @Test func `lies in its device or is refused`() async throws {
        let device = MemoryDevice(byteCount: 1000)
        for (offset, count) in [(1001, nil), (0, 1001), (999, 2), (.max, 1), (1, .max), (.max, .max)] as [(UInt64, UInt64?)] {
            #expect(throws: BlockError.self) { try RawWindow(device, offset: offset, byteCount: count) }
        }
        #expect(try RawWindow(device, offset: 1000).info.byteCount == 0)
        #expect(try RawWindow(device, offset: 1).info.byteCount == 999)
    }

    @Test func `shows and changes its part only, also to careless callers`() async throws {
        let device = MemoryDevice(byteCount: 1000)
        let window = try RawWindow(device, offset: 100, byteCount: 200)
        try await window.write([1, 2, 3], at: 197)
        #expect(try await device.bytes(at: 297, 3) == [1, 2, 3])
        #expect(await blockError { try await window.write([1], at: 200) }?.kind == .outOfRange)
        #expect(await blockError { try await window.bytes(at: 199, 2) }?.kind == .outOfRange)
        #expect(await blockError { try await window.writeZeroes(range(0, 201), []) }?.kind == .outOfRange)
        #expect(await blockError { try await window.discard(range(200, 1)) }?.kind == .outOfRange)
    }
}

@Suite struct `Chosen faults` {
    @Test func `hit the chosen operation, range and turn`() async throws {
        let error = BlockError(.inputOutput, "as wished")
        let device = Faults(
            MemoryDevice(byteCount: 10_000), [.init([.write], in: range(1000, 10), skip: 1, count: 2, error: error)])
        try await device.write([1], at: 1005)
        try await device.write([1], at: 999)
        for _ in 0..<2 { #expect(await blockError { try await device.write([1, 2], at: 999) } == error) }
        try await device.write([1, 2], at: 999)
        _ = try await device.bytes(at: 1000, 10)
        #expect(device.requestCount(.write) == 5)
        #expect(device.requestCount(.read) == 1)
    }

    @Test(arguments: Faults.Operation.allCases)
    func `reach every operation`(operation: Faults.Operation) async throws {
        let memory = MemoryDevice(byteCount: 10_000)
        let device = Faults(memory, [.init([operation], error: BlockError(.noMemory, "x"))])
        var list = ExtentList(byteCountLimit: 10)
        let kind: BlockError.Kind?
        switch operation {
        case .read: kind = await blockError { try await device.bytes(at: 0, 1) }?.kind
        case .write: kind = await blockError { try await device.write([1], at: 0) }?.kind
        case .writeZeroes: kind = await blockError { try await device.writeZeroes(range(0, 1), []) }?.kind
        case .discard: kind = await blockError { try await device.discard(range(0, 1)) }?.kind
        case .flush: kind = await blockError { try await device.flush() }?.kind
        case .prefetch: kind = await blockError { try await device.prefetch(range(0, 1)) }?.kind
        case .status: kind = await blockError { try await device.status(of: range(0, 1), into: &list) }?.kind
        }
        #expect(kind == .noMemory)
        #expect(memory.allocatedByteCount == 0)
        device.setRules([])
        try await device.write([1], at: 0)
    }

    @Test func `can be delays`() async throws {
        let device = Faults(MemoryDevice(byteCount: 100), [.init([.flush], delay: .milliseconds(50))])
        let duration = try await ContinuousClock().measure { try await device.flush() }
        #expect(duration >= .milliseconds(50))
    }

    // S-BLK-09, S-CMD-17
    @Test func `in a discard are a failure, but for one that is not supported`() async throws {
        for (kind, expected) in [(.unsupported, nil), (.inputOutput, .inputOutput)] as [(BlockError.Kind, BlockError.Kind?)] {
            let faults = Faults(MemoryDevice(byteCount: 1 << 20), [Faults.Rule([.discard], error: BlockError(kind, "chosen"))])
            #expect(await blockError { try await Emulation(faults).discard(range(0, 1 << 20)) }?.kind == expected)
            #expect(faults.requestCount(.discard) == 1)
        }
    }

    // S-CMD-18
    @Test func `in the flush after an emulated durable write are the write's`() async throws {
        let faults = Faults(Lazy(byteCount: 4096), [.init([.flush], error: BlockError(.inputOutput, "lost"))])
        let device = Emulation(faults)
        try await device.write([1], at: 0)
        #expect(await blockError { try await device.write([1], at: 0, .durable) }?.kind == .inputOutput)
        #expect(await blockError { try await device.writeZeroes(range(0, 1), .durable) }?.kind == .inputOutput)
    }

    @Test func `in the middle of a cut block leave its neighbours as they were`() async throws {
        let lazy = Lazy(byteCount: 4096, minimum: 512)
        let faults = Faults(lazy)
        let device = Emulation(faults)
        try await device.write([UInt8](repeating: 9, count: 4096), at: 0)
        faults.setRules([.init([.read], error: BlockError(.inputOutput, "unreadable"))])
        #expect(await blockError { try await device.write([1], at: 100) }?.kind == .inputOutput)
        faults.setRules([])
        #expect(try await device.bytes(at: 0, 4096) == [UInt8](repeating: 9, count: 4096))
        // The range is not locked for ever.
        try await device.write([1], at: 100)
    }
}

/// A device with no durable writes and no zeroes of its own.
private final class Lazy: BlockDevice {
    let info: DeviceInfo
    private let memory: MemoryDevice

    init(byteCount: UInt64, minimum: UInt32 = 1) {
        memory = MemoryDevice(byteCount: byteCount)
        info = DeviceInfo(byteCount: byteCount, blockSize: BlockSize(minimum: minimum), abilities: Abilities(flush: .native))
    }

    func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        try await memory.read(at: offset, into: &buffer)
    }

    func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        try await memory.write(at: offset, from: bytes, options)
    }
}
