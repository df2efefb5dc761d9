import Block
import BlockDrivers
import Synchronization
import Testing

@testable import QCOW2

/// What the image holds of its bitmaps while it is open, whoever asks: right, or marked as in use (S-BLK-14, S-BLK-23).
@Suite struct `Bitmaps in an open image` {
    private static let size: UInt64 = 256 << 10
    private static let block: UInt64 = 4096

    /// A file with an empty image that has one bitmap.
    private func made() async throws -> [UInt8] {
        let device = RecordingDevice([])
        var options = ImageOptions()
        options.clusterByteCount = 4096
        let image = try await ImageFile.create(device, virtualByteCount: Self.size, options)
        try await image.addBitmap(Array("changes".utf8), granularity: Self.block)
        return device.bytes
    }

    /// The blocks that the bitmap has marked; nil when nobody may trust it.
    private func dirtyBlocks(_ medium: [UInt8]) async throws -> Set<UInt64>? {
        let image = try await TestImage.open(RecordingDevice(medium), .init(isReadOnly: true))
        let bitmap = try #require(image.bitmaps.first)
        guard !bitmap.isInconsistent else { return nil }
        var blocks: Set<UInt64> = []
        var rest = ByteRange(ofDevice: Self.size)
        while let area = bitmap.nextDirtyArea(in: rest) {
            blocks.formUnion(area.start / Self.block..<(area.end + Self.block - 1) / Self.block)
            rest = rest.dropFirst(area.end - rest.start)
        }
        return blocks
    }

    /// The blocks that are not as they were in the beginning: zero.
    private func changedBlocks(_ medium: [UInt8]) async throws -> Set<UInt64> {
        let image = try await TestImage.open(RecordingDevice(medium), .init(isReadOnly: true))
        let bytes = try await image.bytes(at: 0, count: Int(Self.size))
        return Set((0..<Self.size / Self.block).filter { block in
            bytes[Int(block * Self.block)..<Int((block + 1) * Self.block)].contains { $0 != 0 }
        })
    }

    private func fill(_ image: QCOW2Image, _ offset: UInt64, count: Int = 100, _ value: UInt8 = 1) async throws {
        try await image.write(at: offset, from: [UInt8](repeating: value, count: count).rawBytes, [])
    }

    @Test func `are right in the file while nobody writes`() async throws {
        let file = RecordingDevice(try await made())
        let image = try await TestImage.open(file)
        #expect(try await dirtyBlocks(file.bytes) == [], "nobody has written yet")
        try await fill(image, 8192)
        #expect(try await dirtyBlocks(file.bytes) == nil)
        await image.settle()
        #expect(try await dirtyBlocks(file.bytes) == [2])
        #expect(try await isSound(file))
        let steps = file.steps.count
        await image.settle()
        #expect(file.steps.count == steps, "there was nothing to do")
        try await image.discard(#require(ByteRange(start: 0, count: 4096)))
        #expect(try await dirtyBlocks(file.bytes) == nil)
        await image.settle()
        try await image.writeZeroes(#require(ByteRange(start: 40960, count: 4096)), .mayUnmap)
        #expect(try await dirtyBlocks(file.bytes) == nil)
        for round in 0..<20 as Range<UInt64> {
            try await fill(image, 65536 + round * 4096)
            await image.settle()
        }
        let expected = Set([0, 2, 10] + Array(16..<36)) as Set<UInt64>
        #expect(try await dirtyBlocks(file.bytes) == expected)
        // However often: what was there before is given back.
        #expect(try await isSound(file))
        await image.close()
        #expect(try await dirtyBlocks(file.bytes) == expected)
        #expect(try await isSound(file))
        await image.settle()
        #expect(try await isSound(file), "nothing comes after the end")
    }

    /// Not text, or with a NUL: qemu opens such images, and check finds nothing wrong with them.
    @Test(arguments: [[0x63, 0], [0, 0x63], [0x63, 0xff]] as [[UInt8]], [true, false])
    func `with names that nobody can ask for are kept, and the disk is served`(front: [UInt8], isEnabled: Bool) async throws {
        let device = RecordingDevice([])
        var options = ImageOptions()
        options.clusterByteCount = 4096
        let made = try await ImageFile.create(device, virtualByteCount: Self.size, options)
        try await made.addBitmap(Array("strange".utf8), granularity: Self.block, isEnabled: isEnabled)
        try await made.addBitmap(Array("plain".utf8), granularity: Self.block)
        var bytes = device.bytes
        let place = Int(try #require(made.header.bitmaps).directoryOffset) + BitmapDirectoryEntry.fixedByteCount
        #expect(bytes[place..<place + 7].elementsEqual("strange".utf8))
        bytes.replaceSubrange(place..<place + 2, with: front)
        let file = RecordingDevice(bytes)
        #expect(try await isSound(file))
        let image = try await TestImage.open(file)
        #expect(image.bitmaps.map(\.name) == ["plain"])
        try await fill(image, 8192)
        await image.close()
        #expect(try await isSound(file))
        // What was not recorded is not claimed to be right; what records nothing stays as it was.
        let stored = try await ImageFile.open(file).bitmaps()
        #expect(stored.map(\.name) == [front + Array("range".utf8), Array("plain".utf8)])
        #expect(stored.map(\.flags) == [isEnabled ? [.auto, .inUse] : [], .auto])
    }

    @Test func `stay in use while somebody writes`() async throws {
        let file = RecordingDevice(try await made())
        let image = try await TestImage.open(file)
        try await image.beginWrite()
        await image.settle()
        #expect(try await dirtyBlocks(file.bytes) == nil)
        image.endWrite(ByteRange(ofDevice: 4096))
        await image.settle()
        #expect(try await dirtyBlocks(file.bytes) == [0])
        await image.close()
    }

    @Test func `make the first mapped write wait`() async throws {
        let file = try await TemporaryFile.open(try await made())
        let image = try await QCOW2Image.open(try await ImageHeader.read(from: file), on: file)
        let mapper = try #require(image.makeMapper())
        let range = ByteRange(ofDevice: 4096)
        var segments = SegmentList()
        try await fill(image, 0, count: 4096)
        for _ in 0..<3 {
            #expect(mapper.mapWrite(range, into: &segments))
            mapper.didWrite(range)
            mapper.released()
            segments.removeAll()
            // A refusal counts as nobody's write.
            #expect(!mapper.mapWrite(try #require(ByteRange(start: 8192, count: 4096)), into: &segments))
            await image.settle()
            #expect(!mapper.mapWrite(range, into: &segments))
            try await fill(image, 0, count: 4096)
        }
        await image.close()
    }

    @Test(arguments: 0..<25)
    func `are right or in use whichever write fails`(count: Int) async throws {
        let file = RecordingDevice(try await made())
        let image = try await TestImage.open(file)
        file.fail(after: count)
        for step in 0..<4 as Range<UInt64> {
            try? await fill(image, step * 20480)
            await image.settle()
            if let dirty = try await dirtyBlocks(file.bytes) { #expect(try await changedBlocks(file.bytes).isSubset(of: dirty)) }
        }
        file.fail(after: nil)
        try? await fill(image, 131_072)
        await image.close()
        if let dirty = try await dirtyBlocks(file.bytes) { #expect(try await changedBlocks(file.bytes).isSubset(of: dirty)) }
        #expect(try await isSound(file, leaks: true))
    }

    @Test func `are not lost without a word`() async throws {
        let file = RecordingDevice(try await made())
        let words = Mutex<[String]>([])
        var options = QCOW2Image.Options()
        options.report = { word in words.withLock { $0.append(word) } }
        let image = try await TestImage.open(file, options)
        try await fill(image, 0)
        file.fail(after: 0, as: .noSpace)
        await image.settle()
        #expect(words.withLock { $0 }.contains { $0.contains("bitmaps could not be stored") })
        words.withLock { $0 = [] }
        await image.close()
        #expect(words.withLock { $0 }.contains { $0.contains("bitmaps could not be stored") })
        #expect(try await dirtyBlocks(file.bytes) == nil)
    }

    @Test func `that lie on tables of the image are refused before anything is freed`() async throws {
        var bytes = try await made()
        let header = try await ImageHeader.read(from: RecordingDevice(bytes))
        let directory = try #require(header.bitmaps)
        let table = Int(bytes.rawBytes.bigEndian(UInt64.self, at: Int(directory.directoryOffset)))
        for target in [header.l1TableOffset, header.refcountTableOffset, UInt64(table)] {
            bytes.replaceSubrange(table..<table + 8, with: [UInt8](bigEndianWords: [target], count: 1))
            let error = await #expect(throws: BlockError.self) { _ = try await TestImage.open(RecordingDevice(bytes)) }
            #expect(error?.detail.contains("bitmap 'changes' overlaps") == true, "\(error?.detail ?? "")")
            await (try await TestImage.open(RecordingDevice(bytes), .init(isReadOnly: true))).close()
        }
    }

    @Test func `are right or in use after every power cut`() async throws {
        let seed = Seed.value
        var random = SplitMix(seed: seed)
        let file = RecordingDevice(try await made())
        let image = try await TestImage.open(file)
        // Of each mark: what was dirty when all was settled before it.
        var settled: [Set<UInt64>] = [[]]
        var dirty: Set<UInt64> = []
        for round in 0..<5 {
            file.mark(round)
            for _ in 0..<UInt64.random(in: 1...4, using: &random) {
                let start = UInt64.random(in: 0..<Self.size / 512 - 16, using: &random) * 512
                let range = try #require(ByteRange(start: start, count: UInt64.random(in: 1...16, using: &random) * 512))
                let kind = UInt64.random(in: 0..<5, using: &random)
                if kind != 0 { dirty.formUnion(range.start / Self.block...(range.end - 1) / Self.block) }
                switch kind {
                case 0: try await image.flush()
                case 1: try await image.writeZeroes(range, .mayUnmap)
                case 2: try await image.discard(range)
                default: try await fill(image, range.start, count: Int(range.count), UInt8(round + 1))
                }
            }
            await image.settle()
            settled.append(dirty)
            #expect(try await dirtyBlocks(file.bytes) == dirty)
        }
        file.mark(5)
        await image.close()
        settled.append(dirty)
        let points = settled
        var failures = 0
        try await PowerCuts(device: file).forEach(samples: 2, seed: seed) { step, medium, marks in
            guard failures == 0 else { return }
            let found = try await dirtyBlocks(medium)
            var wrong: String?
            if let found, !(try await changedBlocks(medium).isSubset(of: found)) { wrong = "a changed block is not dirty" }
            let mark = marks.last ?? 0
            if let found, found != points[mark], found != points[mark + 1] { wrong = "\(found) is dirty" }
            if mark == 5, found == nil { wrong = "in use although nobody writes" }
            if !(try await isSound(RecordingDevice(medium), leaks: true)) { wrong = "the check finds errors" }
            if let wrong {
                failures += 1
                Issue.record("cut at step \(step): \(wrong) SEED=\(seed)")
            }
        }
    }
}

/// A file that remembers which mapped writes it was told of.
private final class ToldDevice: ResizableDevice {
    let file: RawFile
    private let state = Mutex<[ByteRange]>([])

    init(_ file: RawFile) { self.file = file }

    var told: [ByteRange] { state.withLock { $0 } }
    var info: DeviceInfo { file.info }
    var currentByteCount: UInt64 { file.currentByteCount }

    func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        try await file.read(at: offset, into: &buffer)
    }

    func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        try await file.write(at: offset, from: bytes, options)
    }

    func resize(to byteCount: UInt64) async throws(BlockError) { try await file.resize(to: byteCount) }

    func makeMapper() -> sending (any RangeMapper)? {
        guard let mapper = file.makeMapper() else { return nil }
        return Mapper(self, mapper)
    }

    private final class Mapper: RangeMapper {
        private let device: ToldDevice
        private let mapper: any RangeMapper

        init(_ device: ToldDevice, _ mapper: any RangeMapper) {
            self.device = device
            self.mapper = mapper
        }

        func mapRead(_ range: ByteRange, into segments: inout SegmentList) -> Bool { mapper.mapRead(range, into: &segments) }
        func mapWrite(_ range: ByteRange, into segments: inout SegmentList) -> Bool { mapper.mapWrite(range, into: &segments) }
        func didWrite(_ range: ByteRange) { device.state.withLock { $0.append(range) } }
        func released() { mapper.released() }
    }
}

@Suite struct `What an image stands on` {
    // S-BLK-23
    @Test func `is told of mapped writes, by its own offsets`() async throws {
        let device = ToldDevice(try await TemporaryFile.open(try TestImage.empty(1 << 20)))
        let image = try await QCOW2Image.open(try await ImageHeader.read(from: device), on: device)
        let mapper = try #require(image.makeMapper())
        let range = try #require(ByteRange(start: 1000, count: 4096))
        try await image.write(at: 0, from: [UInt8](repeating: 1, count: 65536).rawBytes, [])
        var segments = SegmentList()
        #expect(mapper.mapWrite(range, into: &segments))
        mapper.didWrite(range)
        mapper.released()
        guard case .file(_, let offset, let count)? = segments.first else { return #expect(Bool(false)) }
        #expect(device.told == [try #require(ByteRange(start: offset, count: UInt64(count)))])
        await image.close()
    }
}
