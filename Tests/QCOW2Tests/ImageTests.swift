import Block
import BlockDrivers
import Synchronization
import Testing

@testable import QCOW2

@Suite struct `An open image` {
    private func fill(_ image: QCOW2Image, _ offset: UInt64, _ count: Int, _ value: UInt8, _ options: WriteOptions = []) async throws {
        try await image.write(at: offset, from: [UInt8](repeating: value, count: count).rawBytes, options)
    }

    private func extents(_ image: QCOW2Image, depth: Bool = false) async throws -> [Extent] {
        var list = ExtentList(byteCountLimit: image.info.byteCount)
        let range = ByteRange(ofDevice: image.info.byteCount)
        if depth { try await image.allocationDepth(of: range, into: &list) } else { try await image.status(of: range, into: &list) }
        return list.extents
    }

    @Test func `tells data, zeroes and what is below by clusters (S-BST-07, S-BST-08)`() async throws {
        let bytes = try TestImage.empty(1 << 20, hasBacking: true)
        let image = try await TestImage.open(RecordingDevice(bytes), backing: PatternDevice(byteCount: 600_000))
        try await fill(image, 100, 10, 1)
        try await image.writeZeroes(#require(ByteRange(start: 131_072, count: 65536)), .mayUnmap)
        #expect(
            try await extents(image) == [
                Extent(131_072, .data), Extent(65536, [.hole, .zero]), Extent(600_000 - 196_608, .data), Extent((1 << 20) - 600_000, [.hole, .zero]),
            ])
        #expect(
            try await extents(image, depth: true) == [
                Extent(65536, ExtentStatus(rawValue: 1)), Extent(65536, ExtentStatus(rawValue: 2)), Extent(65536, ExtentStatus(rawValue: 1)),
                Extent((1 << 20) - 196_608, ExtentStatus(rawValue: 2)),
            ])
        await image.close()
    }

    @Test func `is not written any more after a flush has failed`() async throws {
        let file = RecordingDevice(try TestImage.empty(1 << 20))
        let image = try await TestImage.open(file)
        try await fill(image, 0, 4096, 1)
        file.fail(after: 0)
        await #expect(throws: BlockError.self) { try await image.flush() }
        file.fail(after: nil)
        let steps = file.steps.count
        await #expect(throws: BlockError.self) { try await fill(image, 0, 4096, 2) }
        await #expect(throws: BlockError.self) { try await image.flush() }
        await image.close()
        #expect(file.steps.count == steps, "nothing was written after the failure")
        #expect(try ReferenceCheck(file.bytes).errors.isEmpty)
    }

    @Test(arguments: 0..<30)
    func `is in order whichever write fails`(count: Int) async throws {
        let file = RecordingDevice(try TestImage.empty(1 << 20, clusterBits: 9))
        let image = try await TestImage.open(file)
        file.fail(after: count)
        for step in 0..<20 { try? await fill(image, UInt64(step) * 40_000, 3000, 1, step % 5 == 4 ? .durable : []) }
        await image.close()
        #expect(try ReferenceCheck(file.bytes).errors.isEmpty)
    }

    @Test(arguments: 0..<60)
    func `goes on when there is room again, whichever write found none`(count: Int) async throws {
        let file = RecordingDevice(try TestImage.empty(1 << 20, clusterBits: 9))
        let image = try await TestImage.open(file)
        try await fill(image, 0, 8192, 9)
        file.fail(after: count, as: .noSpace)
        var expected = [UInt8](repeating: 9, count: 8192) + [UInt8](repeating: 0, count: (1 << 20) - 8192)
        for step in 0..<20 {
            let offset = step * 40_000
            do {
                try await fill(image, UInt64(offset), 3000, 1)
                expected.replaceSubrange(offset..<offset + 3000, with: repeatElement(1, count: 3000))
                if step % 3 == 2 { try await image.discard(#require(ByteRange(start: UInt64(offset - 40_000), count: 512 * 4))) }
                if step % 5 == 4 { try await image.flush() }
            } catch let error as BlockError {
                #expect(error.kind == .noSpace)
            }
        }
        file.fail(after: nil)
        try await image.flush()
        for offset in stride(from: 20_000, to: 1 << 20, by: 50_000) {
            try await fill(image, UInt64(offset), 3000, 2)
            expected.replaceSubrange(offset..<offset + 3000, with: repeatElement(2, count: 3000))
        }
        await image.close()
        #expect(try await isSound(file))
        let reopened = try await TestImage.open(RecordingDevice(file.bytes))
        let found = try await reopened.bytes(at: 0, count: 1 << 20)
        // A write that found no room may have come in part, and a discard reads as it likes.
        let differing = (0..<1 << 20).filter { found[$0] != expected[$0] && expected[$0] != 0 && found[$0] != 0 }
        #expect(differing.isEmpty, "\(differing.prefix(5))")
        #expect((0..<8192).allSatisfy { found[$0] != 0 })
        await reopened.close()
    }

    @Test func `keeps no more of its tables in memory than its limits say`() async throws {
        let file = RecordingDevice(try TestImage.empty(4 << 20, clusterBits: 9))
        var options = QCOW2Image.Options()
        // Of 128 L2 tables and 33 refcount blocks, each of 512 bytes.
        options.limits = MetadataLimits(l2ByteCount: 8 * 512, refcountByteCount: 4 * 512)
        let image = try await TestImage.open(file, options)
        for round in 0..<2 as Range<UInt8> {
            for offset in stride(from: 0, to: 4 << 20, by: 32768) {
                try await fill(image, UInt64(offset), 1000, round + 1)
                #expect(image.metadata.cache.byteCount <= 2 * 8 * 512)
                #expect(image.metadata.state.withLock { $0.refcounts.loadedByteCount } <= 2 * 4 * 512)
            }
        }
        try await image.flush()
        for offset in stride(from: 0, to: 4 << 20, by: 32768) {
            #expect(try await image.bytes(at: UInt64(offset), count: 1000) == [UInt8](repeating: 2, count: 1000))
            #expect(image.metadata.cache.byteCount <= 8 * 512)
        }
        await image.close()
        #expect(try await isSound(file))
    }

    @Test func `uses a freed cluster again only when no mapper can name it`() async throws {
        let file = try await TemporaryFile.open(try TestImage.empty(1 << 20))
        let image = try await QCOW2Image.open(try await ImageHeader.read(from: file), on: file)
        let mapper = try #require(image.makeMapper())
        #expect(!mapper.placesAreFixed, "a reply that was sent by reference would tell what the cluster holds later")
        try await fill(image, 0, 65536, 1)
        var segments = SegmentList()
        let first = try #require(ByteRange(start: 0, count: 4096))
        #expect(mapper.mapRead(first, into: &segments))
        let mapped = segments
        try await image.discard(#require(ByteRange(start: 0, count: 65536)))
        // A flush brings the change into the image; the mapper still has the cluster.
        try await image.flush()
        for index in 1..<8 { try await fill(image, UInt64(index) * 65536, 65536, 2) }
        try await image.flush()
        #expect(bytes(of: mapped) == [UInt8](repeating: 1, count: 4096))
        mapper.released()
        try await image.flush()
        let before = file.currentByteCount
        try await fill(image, 0, 65536, 3)
        #expect(file.currentByteCount == before)
        segments.removeAll()
        #expect(mapper.mapRead(first, into: &segments))
        #expect(bytes(of: segments) == [UInt8](repeating: 3, count: 4096))
        await image.close()
    }

    private func bytes(of segments: SegmentList) -> [UInt8] {
        var result: [UInt8] = []
        for segment in segments.all {
            let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: segment.byteCount, alignment: 16)
            defer { memory.deallocate() }
            var output = OutputRawSpan(buffer: memory, initializedCount: 0)
            if segment.readNow(into: &output) {
                _ = output.finalize(for: memory)
                result += [UInt8](memory)
            }
        }
        return result
    }

    @Test func `maps overwrites of what it has for itself, and nothing that needs a table to change`() async throws {
        let file = try await TemporaryFile.open(try TestImage.empty(1 << 20))
        let image = try await QCOW2Image.open(try await ImageHeader.read(from: file), on: file)
        let mapper = try #require(image.makeMapper())
        var segments = SegmentList()
        let range = try #require(ByteRange(start: 1000, count: 4096))
        #expect(!mapper.mapWrite(range, into: &segments))
        try await fill(image, 0, 65536, 1)
        #expect(mapper.mapWrite(range, into: &segments) && segments.only != nil)
        mapper.didWrite(range)
        mapper.released()
        segments.removeAll()
        try await image.writeZeroes(#require(ByteRange(start: 0, count: 65536)), [])
        #expect(!mapper.mapWrite(range, into: &segments) && segments.isEmpty)
        await image.close()
    }

    @Test func `gives parallel writers of one cluster what each has written`() async throws {
        let file = RecordingDevice(try TestImage.empty(1 << 20, hasBacking: true))
        let image = try await TestImage.open(file, backing: PatternDevice(byteCount: 1 << 20))
        await withTaskGroup(of: Void.self) { group in
            for client in 0..<4 {
                group.addTask {
                    for index in 0..<200 {
                        let offset = UInt64(index * 4 + client) * 1000
                        try? await image.write(at: offset, from: [UInt8](repeating: UInt8(client + 1), count: 1000).rawBytes, [])
                        if index % 50 == 0 { try? await image.flush() }
                    }
                }
            }
        }
        let bytes = try await image.bytes(at: 0, count: 800_000)
        let wrong = (0..<800).filter { (piece: Int) -> Bool in
            let expected = UInt8(piece % 4 + 1)
            let start = piece * 1000
            return !bytes[start..<start + 1000].allSatisfy { $0 == expected }
        }
        #expect(wrong.isEmpty)
        await image.close()
        let check = try ReferenceCheck(file.bytes)
        #expect(check.errors.isEmpty && check.leakCount == 0)
    }
}

@Suite struct `A hostile image` {
    /// Every word of the tables, replaced by values that a stranger may like.
    @Test(arguments: [9, 12, 16])
    func `fails requests, and nothing else`(clusterBits: Int) async throws {
        let seed = Seed.value
        var random = SplitMix(seed: seed)
        let file = RecordingDevice(try TestImage.empty(1 << 20, clusterBits: clusterBits))
        let image = try await TestImage.open(file)
        for index in 0..<20 {
            try await image.write(at: UInt64(index) * 50_000, from: [UInt8](repeating: 1, count: 3000).rawBytes, [])
        }
        await image.close()
        let good = file.bytes
        let values: [UInt64] = [
            0, 1, .max, 1 << 63, 1 << 62, 1 << 63 | 512, 1 << 63 | 1 << 9, 0x00ff_ffff_ffff_fe00, 1 << 63 | 0x00ff_ffff_ffff_0000, 3 << 62,
            1 << 62 | 0x3fff_ffff_ffff_ffff, UInt64(good.count), 1 << 63 | UInt64(good.count), 0x7fff_ffff_ffff_0000,
        ]
        for _ in 0..<40 {
            var bytes = good
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                let place = Int.random(in: 0..<bytes.count / 8, using: &random) * 8
                let value = Bool.random(using: &random) ? values.randomElement(using: &random)! : UInt64.random(in: 0..<UInt64(good.count), using: &random)
                bytes.replaceSubrange(place..<place + 8, with: TestImage.big(value))
            }
            for isReadOnly in [true, false] {
                guard let image = try? await TestImage.open(RecordingDevice(bytes), .init(isReadOnly: isReadOnly)) else { continue }
                let size = min(image.info.byteCount, 1 << 20)
                for offset in stride(from: 0, to: size, by: 190_000) {
                    _ = try? await image.bytes(at: offset, count: Int(min(65536, size - offset)))
                    var list = ExtentList(byteCountLimit: size - offset)
                    try? await image.status(of: ByteRange(start: offset, count: size - offset)!, into: &list)
                    guard !isReadOnly else { continue }
                    let count = min(5000, size - offset)
                    try? await image.write(at: offset, from: [UInt8](repeating: 2, count: Int(count)).rawBytes, [])
                    try? await image.writeZeroes(ByteRange(start: offset, count: count)!, .mayUnmap)
                    try? await image.discard(ByteRange(start: offset, count: size - offset)!)
                }
                try? await image.flush()
                await image.close()
            }
        }
    }

    @Test func `is not written where it says that its disk lies in its tables`() async throws {
        let file = RecordingDevice(try TestImage.empty(1 << 20))
        let image = try await TestImage.open(file)
        try await image.write(at: 0, from: [1, 2, 3].rawBytes, [])
        await image.close()
        var bytes = file.bytes
        let l2 = Int(L1Entry(rawValue: bytes.rawBytes.bigEndian(at: 3 * 65536)).tableOffset)
        for place in [0, 1, 2, 3, l2 / 65536] {
            bytes.replaceSubrange(l2..<l2 + 8, with: TestImage.big(1 << 63 | UInt64(place) << 16))
            let hostile = RecordingDevice(bytes)
            let image = try await TestImage.open(hostile)
            if place > 0 {
                await #expect(throws: BlockError.self) { try await image.write(at: 0, from: [9, 9, 9].rawBytes, []) }
                #expect(try TestImage.header(of: hostile.bytes).incompatibleFeatures.contains(.corrupt))
            }
            await #expect(throws: BlockError.self) {
                if place == 0 { throw BlockError(.inputOutput, "offset 0 is no cluster") }
                try await image.flush()
            }
            await image.close()
        }
    }
}
