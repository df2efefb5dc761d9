import Block
import Synchronization
import Testing

@Suite struct `The emulation` {
    @Test func `loses no byte when many cut the same blocks`() async throws {
        let blocky = BlockyDevice(byteCount: 64 << 10, minimum: 4096)
        let device = Emulation(blocky)
        for round in UInt8(1)...5 {
            await withTaskGroup(of: Void.self) { group in
                for index in 0..<100 {
                    group.addTask {
                        try? await device.write([UInt8](repeating: round &+ UInt8(index), count: 500), at: UInt64(index) * 500)
                    }
                }
            }
            for index in 0..<100 {
                #expect(try await device.bytes(at: UInt64(index) * 500, 500) == [UInt8](repeating: round &+ UInt8(index), count: 500))
            }
        }
    }

    @Test func `follows a durable write with a flush when the device has none of its own`() async throws {
        let blocky = BlockyDevice(byteCount: 64 << 10, minimum: 512)
        let device = Emulation(blocky)
        try await device.write([1, 2, 3], at: 511)
        #expect(blocky.flushCount.load(ordering: .relaxed) == 0)
        try await device.write([1, 2, 3], at: 511, .durable)
        #expect(blocky.flushCount.load(ordering: .relaxed) == 1)
        try await device.writeZeroes(range(100, 5000), .durable)
        #expect(blocky.flushCount.load(ordering: .relaxed) == 2)
        #expect(device.info.abilities.durableWrites == .native)
    }

    @Test func `does not flush after a failed write, and tells why it failed`() async throws {
        let device = Emulation(BlockyDevice(byteCount: 64 << 10, minimum: 512))
        #expect(await blockError { try await device.write([1], at: 64 << 10, .durable) } == .outOfRange)
    }

    // P-CMD-ZERO-2, S-CMD-16
    @Test func `refuses fast zeroes before anything has changed`() async throws {
        for abilities in [Abilities(flush: .native), Abilities(zeroes: .native)] {
            let blocky = BlockyDevice(byteCount: 64 << 10, minimum: 512, abilities: abilities)
            let device = Emulation(blocky)
            #expect(device.info.abilities.fastZeroes == .none)
            #expect(await blockError { try await device.writeZeroes(range(3, 20_000), .fast) } == .unsupported)
            #expect(blocky.writeCount.load(ordering: .relaxed) == 0)
        }
        let capable = BlockyDevice(byteCount: 64 << 10, minimum: 512, abilities: .allNative)
        #expect(await blockError { try await Emulation(capable).writeZeroes(range(3, 600), .fast) } == .unsupported)
        #expect(capable.writeCount.load(ordering: .relaxed) == 0)
        try await Emulation(capable).writeZeroes(range(3, 6000), .fast)
    }

    // S-CMD-14, S-BLK-04
    @Test func `writes zeroes in bounded pieces`() async throws {
        let blocky = BlockyDevice(byteCount: 4 << 20, minimum: 512, maximum: 64 << 10)
        try await Emulation(blocky).write([UInt8](repeating: 7, count: 3 << 20), at: 100)
        #expect(blocky.writeCount.load(ordering: .relaxed) == 50)
        try await Emulation(blocky).writeZeroes(range(1, (4 << 20) - 2), [])
        #expect(try await Emulation(blocky).bytes(at: 0, 4 << 20) == [UInt8](repeating: 0, count: 4 << 20))
    }

    // S-REQ-11, S-BLK-24
    @Test func `finds out first that a device is read-only`() async throws {
        let device = Emulation(MemoryDevice(byteCount: 10, isReadOnly: true))
        #expect(await blockError { try await device.write([1], at: 100) } == .readOnly)
        #expect(await blockError { try await device.writeZeroes(range(100, 1), []) } == .readOnly)
        #expect(await blockError { try await device.discard(range(100, 1)) } == .readOnly)
        try await device.flush()
    }

    // S-EXP-06
    @Test func `leaves out the bytes behind the last whole block`() async throws {
        let device = Emulation(BlockyDevice(byteCount: 1000, minimum: 512))
        #expect(device.info.byteCount == 512)
        #expect(await blockError { try await device.bytes(at: 512, 1) } == .outOfRange)
    }

    // S-BLK-24, S-BLK-06
    @Test(arguments: [100, 1 << 63, .max] as [UInt64])
    func `refuses what lies outside, however far`(offset: UInt64) async throws {
        let memory = MemoryDevice(byteCount: 100)
        let device = Emulation(memory)
        #expect(await blockError { try await device.bytes(at: offset, 1) } == .outOfRange)
        #expect(await blockError { try await device.write([1], at: offset) } == .outOfRange)
        if let range = ByteRange(start: offset, count: 1) {
            #expect(await blockError { try await device.writeZeroes(range, []) } == .outOfRange)
            #expect(await blockError { try await device.discard(range) } == .outOfRange)
            #expect(await blockError { try await device.prefetch(range) } == .outOfRange)
        }
        #expect(memory.allocatedByteCount == 0)
    }

    // S-BLK-09
    @Test func `discards only blocks that lie in the range whole`() async throws {
        let blocky = BlockyDevice(byteCount: 256 << 10, minimum: 65536, maximum: 64 << 10)
        let device = Emulation(blocky)
        try await device.write([UInt8](repeating: 1, count: 256 << 10), at: 0)
        try await device.discard(range(1, (192 << 10) - 1))
        #expect(try await device.extents() == [Extent(65536, .data), Extent(131_072, [.hole, .zero]), Extent(65536, .data)])
        #expect(try await device.bytes(at: 0, 65536).allSatisfy { $0 == 1 })
    }

    @Test func `clips the status of blocks to the bytes asked for`() async throws {
        let blocky = BlockyDevice(byteCount: 256 << 10, minimum: 4096, abilities: .allNative)
        try await blocky.memory.write([1], at: 70_000)
        let device = Emulation(blocky)
        var list = ExtentList(byteCountLimit: 100_000)
        try await device.status(of: range(5000, 100_000), into: &list)
        #expect(list.extents == [Extent(60_536, [.hole, .zero]), Extent(39_464, .data)])
        var one = ExtentList(byteCountLimit: 100_000, extentCountLimit: 1)
        try await device.status(of: range(5000, 100_000), into: &one)
        #expect(one.extents == [Extent(60_536, [.hole, .zero])])
    }

    @Test func `passes the mapper on, and only reads of whole blocks when blocks can be cut`() {
        #expect(Emulation(NullDevice(byteCount: 100)).makeMapper() != nil)
        #expect(Emulation(MemoryDevice(byteCount: 100)).makeMapper() == nil)
    }
}

/// A value that tasks may share.
private final class Shared<Value: Sendable>: Sendable {
    private let value: Mutex<Value>
    init(_ value: sending Value) { self.value = Mutex(value) }
    func withLock<Result: Sendable>(_ body: @Sendable (inout Value) -> Result) -> Result { value.withLock { body(&$0) } }
}

@Suite struct `A lock on ranges` {
    @Test func `lets strangers pass and keeps neighbours in order`() async {
        let lock = RangeLock()
        let first = await lock.acquire(range(0, 100))
        let stranger = await lock.acquire(range(100, 100))
        lock.release(stranger)
        let order = Shared<[Int]>([])
        await withTaskGroup(of: Void.self) { group in
            group.addTask {
                let ticket = await lock.acquire(range(50, 100))
                order.withLock { $0.append(1) }
                lock.release(ticket)
            }
            try? await Task.sleep(for: .milliseconds(30))
            group.addTask {
                // Meets only the one that waits: it must not overtake.
                let ticket = await lock.acquire(range(140, 10))
                order.withLock { $0.append(2) }
                lock.release(ticket)
            }
            try? await Task.sleep(for: .milliseconds(30))
            #expect(order.withLock { $0 } == [])
            lock.release(first)
            await group.waitForAll()
        }
        #expect(order.withLock { $0 } == [1, 2])
    }

    @Test func `never lets two overlap`() async {
        let lock = RangeLock()
        let busy = Shared([Int](repeating: 0, count: 64))
        await withTaskGroup(of: Void.self) { group in
            for index in 0..<300 {
                let start = index * 37 % 56
                let length = 1 + index % 8
                group.addTask {
                    let ticket = await lock.acquire(range(UInt64(start), UInt64(length)))
                    busy.withLock { busy in
                        for byte in start..<start + length {
                            busy[byte] += 1
                            #expect(busy[byte] == 1)
                        }
                    }
                    await Task.yield()
                    busy.withLock { busy in for byte in start..<start + length { busy[byte] -= 1 } }
                    lock.release(ticket)
                }
            }
        }
    }
}
