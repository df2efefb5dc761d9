import Block
import Synchronization
import Testing

@Suite struct `A memory device` {
    @Test func `takes memory only for pages that were written, and gives it back`() async throws {
        let device = MemoryDevice(byteCount: UInt64(Int64.max))
        #expect(device.allocatedByteCount == 0)
        try await device.write([1], at: 1 << 50)
        #expect(device.allocatedByteCount == 65536)
        try await device.discard(range(0, device.info.byteCount))
        #expect(device.allocatedByteCount == 0)
        try await device.writeZeroes(range(0, 200_000), [])
        #expect(device.allocatedByteCount == 4 * 65536)
        try await device.writeZeroes(range(1, 199_999), .mayUnmap)
        #expect(device.allocatedByteCount == 2 * 65536)
    }

    @Test func `frees its short last page`() async throws {
        let device = MemoryDevice(byteCount: 65536 + 10)
        try await device.write([UInt8](repeating: 1, count: 65546), at: 0)
        try await device.discard(range(0, 65546))
        #expect(device.allocatedByteCount == 0)
    }

    @Test func `fails with no space at its limit, and only there`() async throws {
        let device = MemoryDevice(byteCount: 1 << 20, allocationLimit: 128 << 10)
        try await device.write([UInt8](repeating: 1, count: 128 << 10), at: 0)
        #expect(await blockError { try await device.write([1], at: 128 << 10) } == .noSpace)
        #expect(await blockError { try await device.writeZeroes(range(1 << 19, 1), []) } == .noSpace)
        try await device.writeZeroes(range(1 << 19, 1), .mayUnmap)
        try await device.write([2], at: 5)
        try await device.discard(range(0, 65536))
        try await device.write([1], at: 128 << 10)
    }

    @Test func `answers the status of a huge range in bounded time`() async throws {
        let device = MemoryDevice(byteCount: UInt64(Int64.max))
        var list = ExtentList(byteCountLimit: device.info.byteCount)
        try await device.status(of: range(0, device.info.byteCount), into: &list)
        #expect(list.byteCount == 65536 * 65536)
    }
}

@Suite struct `A pattern device` {
    @Test func `has nbdkit's bytes`() async throws {
        let device = PatternDevice(byteCount: 0x200_0000)
        #expect(try await device.bytes(at: 0x1FF_FFF0, 16) == [0, 0, 0, 0, 1, 0xFF, 0xFF, 0xF0, 0, 0, 0, 0, 1, 0xFF, 0xFF, 0xF8])
        #expect(try await device.bytes(at: 0x1234D, 4) == [0x1, 0x23, 0x48, 0])
        #expect(await blockError { try await device.write([1], at: 0) } == .readOnly)
    }
}

@Suite struct `A byte range` {
    @Test func `is refused where its end does not fit`() {
        #expect(ByteRange(start: .max, count: 0) != nil)
        #expect(ByteRange(start: .max, count: 1) == nil)
        #expect(ByteRange(start: 1, count: .max) == nil)
    }

    // S-REQ-13
    @Test(
        arguments: [(0, 10, true), (10, 0, true), (10, 1, false), (11, 0, false), (.max, 2, false), (0, .max, false)]
            as [(UInt64, UInt64, Bool)])
    func `lies in a device or does not`(start: UInt64, count: UInt64, isInside: Bool) {
        #expect((ByteRange(start: start, count: count, within: 10) != nil) == isInside)
    }

    @Test func `shrinks to whole blocks, or to none`() {
        #expect(range(1, 1023).shrunk(toMultiplesOf: 512) == range(512, 512))
        #expect(range(0, 512).shrunk(toMultiplesOf: 512) == range(0, 512))
        #expect(range(1, 1022).shrunk(toMultiplesOf: 512) == nil)
        #expect(ByteRange(start: .max - 1, count: 1)?.shrunk(toMultiplesOf: 512) == nil)
    }
}

@Suite struct `A list of extents` {
    // S-BST-02, S-BST-03, S-BST-04, S-BST-05
    @Test func `merges, clips and ends`() {
        var list = ExtentList(byteCountLimit: 100, extentCountLimit: 2)
        let answers = [list.append(10, .data), list.append(0, .hole), list.append(10, .data), list.append(10, [.hole, .zero])]
        #expect(answers == [true, true, true, true])
        let overflow = list.append(10, .data)
        #expect(!overflow)
        #expect(list.extents == [Extent(20, .data), Extent(10, [.hole, .zero])])
        var short = ExtentList(byteCountLimit: 15)
        let clipped = short.append(20, .data)
        #expect(!clipped)
        #expect(short.byteCount == 15)
    }
}

@Suite struct `Spans` {
    @Test(arguments: [0, 1, 7, 8, 31, 32, 33, 63, 64, 65, 4096, 4101])
    func `are zero when every byte is`(count: Int) {
        var bytes = [UInt8](repeating: 0, count: count)
        #expect(isZero(bytes))
        for index in bytes.indices {
            bytes[index] = 0x80
            #expect(!isZero(bytes))
            bytes[index] = 0
        }
    }

    private func isZero(_ bytes: [UInt8]) -> Bool { bytes.rawBytes.isZero }
}

@Suite struct `Arrays in and out of a device` {
    @Test(arguments: [0, 1, 4999, 5000, 5001, 20_000])
    func `go in pieces that it takes`(count: Int) async throws {
        let device = BlockyDevice(byteCount: 30_000, minimum: 1, maximum: 5000)
        let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 / 7 + 1) }
        try await device.store(bytes, at: 123)
        #expect(device.writeCount.load(ordering: .relaxed) == (count + 4999) / 5000)
        #expect(try await device.bytes(at: 123, count: count) == bytes)
        #expect(try await device.bytes(at: 0, count: 123) == [UInt8](repeating: 0, count: 123))
        #expect(await blockError { try await device.bytes(at: 29_000, count: 1001) } == .invalid)
    }
}
