import Block
import Testing

@testable import QCOW2

/// Power is cut at every step of a run of random requests, also with the writes since the last flush in another order or lost in part.
/// Whatever is left opens, has no cluster that is named more often than counted, and holds what was flushed; qemu-img finds at most lost
/// clusters.
@Suite struct `Power cuts` {
    struct Shape: Sendable, CustomTestStringConvertible {
        var name: String
        var clusterBits = 16
        var refcountOrder = 4
        var extended = false
        var version: UInt32 = 3
        var byteCount: UInt64 = 300_000
        var hasBacking = false
        var isSnapshotted = false
        var isLazy = false
        /// What it has is on its medium at once, so a cut shows what the image's own order is worth.
        var hasDataFile = false
        /// Each is followed by cuts at all that came before it: time grows with the square.
        var steps = 12
        var testDescription: String { name }
    }

    static let shapes = [
        Shape(name: "small clusters, whose refcount table must grow", clusterBits: 9, refcountOrder: 6, byteCount: 500_000, steps: 20),
        Shape(name: "small clusters over a backing file", clusterBits: 9, byteCount: 300_000, hasBacking: true),
        Shape(name: "version 2", clusterBits: 12, version: 2, hasBacking: true),
        Shape(name: "version 3, one bit for a refcount", clusterBits: 12, refcountOrder: 0),
        Shape(name: "subclusters over a backing file", clusterBits: 14, extended: true, hasBacking: true),
        Shape(name: "after a snapshot", clusterBits: 12, hasBacking: true, isSnapshotted: true),
        Shape(name: "subclusters after a snapshot", clusterBits: 14, extended: true, isSnapshotted: true),
        Shape(name: "lazy refcounts", clusterBits: 12, isLazy: true),
        Shape(name: "an external data file", clusterBits: 12, hasDataFile: true),
    ]

    @Test(arguments: shapes)
    func `leave an image in order, with what was flushed`(shape: Shape) async throws {
        let seed = Seed.value
        var random = SplitMix(seed: seed)
        var bytes = try TestImage.empty(
            shape.byteCount, clusterBits: shape.clusterBits, refcountOrder: shape.refcountOrder, extended: shape.extended,
            version: shape.version, hasBacking: shape.hasBacking
        ) { header in
            if shape.isLazy { header.compatibleFeatures.insert(.lazyRefcounts) }
            if shape.hasDataFile {
                header.incompatibleFeatures.insert(.externalDataFile)
                header.extensions.append(.dataFileName(Array("data".utf8)))
            }
        }
        let data = shape.hasDataFile ? RecordingDevice([UInt8](repeating: 0, count: Int(shape.byteCount)), discarded: 0) : nil
        let base = shape.hasBacking ? PatternDevice(byteCount: shape.byteCount - 50_000) : nil
        var guest = try await contents(of: bytes, base, data)
        if shape.isSnapshotted {
            let file = RecordingDevice(bytes)
            let image = try await TestImage.open(file, backing: base)
            for _ in 0..<10 {
                let range = randomRange(shape, &random)
                try await image.write(at: range.start, from: [UInt8](repeating: 0x55, count: Int(range.count)).rawBytes, [])
            }
            await image.close()
            bytes = try TestImage.snapshotted(file.bytes)
            guest = try await contents(of: bytes, base, data)
        }
        // Of each block: what it may hold, the newest last. `flushed` says from where on.
        let block = 512
        var history = stride(from: 0, to: guest.count, by: block).map { at in [Array(guest[at..<min(at + block, guest.count)])] }
        var flushed: [[Int]] = [history.map { _ in 0 }]
        // The last version that was not made by a discard, which may do nothing.
        var certain = history.map { _ in 0 }
        let file = RecordingDevice(bytes)
        let image = try await TestImage.open(file, backing: base, dataFile: data)
        for step in 0..<shape.steps {
            let range = randomRange(shape, &random)
            let blocks = Int(range.start) / block..<Int(range.end + UInt64(block) - 1) / block
            switch UInt64.random(in: 0..<12, using: &random) {
            case 0..<5:
                let value = UInt8(truncatingIfNeeded: step + 1)
                for index in blocks { history[index].append([UInt8](repeating: value, count: history[index][0].count)) }
                for index in blocks { certain[index] = history[index].count - 1 }
                try await image.write(at: range.start, from: [UInt8](repeating: value, count: Int(range.count)).rawBytes, [])
            case 5..<8:
                for index in blocks { history[index].append([UInt8](repeating: 0, count: history[index][0].count)) }
                for index in blocks { certain[index] = history[index].count - 1 }
                try await image.writeZeroes(range, UInt64.random(in: 0..<3, using: &random) == 0 ? [] : .mayUnmap)
            case 8..<10:
                for index in blocks { history[index].append([UInt8](repeating: 0, count: history[index][0].count)) }
                try await image.discard(range)
            default:
                let last = certain
                try await image.flush()
                flushed.append(last)
                file.mark(flushed.count - 1)
            }
        }
        await image.close()
        let last = try ReferenceCheck(file.bytes)
        #expect(last.errors.isEmpty && last.harmlessFlags.isEmpty && last.leakCount == 0, "after closing: \(last) SEED=\(seed)")
        let final = history
        let points = flushed
        var failures = 0
        let peer = try QEMUImg(limit: 60 / Self.shapes.count)
        try await PowerCuts(device: file).forEach(samples: 1, seed: seed) { step, medium, marks in
            guard failures == 0 else { return }
            let check = try ReferenceCheck(medium)
            let found = try await contents(of: medium, base, data)
            let floor = points[marks.last ?? 0]
            var wrong = try check.errors.first ?? check.harmlessFlags.first ?? peer?.finding(in: medium)
            for (index, versions) in final.enumerated() where wrong == nil {
                let now = found[index * block..<min(index * block + block, found.count)]
                if !versions[floor[index]...].contains(where: { $0.elementsEqual(now) }) { wrong = "block \(index) holds \(now.prefix(4))" }
            }
            if let wrong {
                failures += 1
                Issue.record("cut at step \(step): \(wrong) SEED=\(seed)")
            }
        }
    }

    /// Else the tests above could not fail by its word.
    @Test func `are judged by a qemu-img that sees damage`() throws {
        guard let peer = try QEMUImg(limit: 2) else { return }
        var bytes = try TestImage.empty(300_000)
        #expect(try peer.finding(in: bytes) == nil)
        // The refcounts of the first clusters, which are in use.
        bytes.replaceSubrange(2 << 16..<2 << 16 + 4, with: [0, 0, 0, 0])
        for _ in 0..<24 { #expect(try peer.finding(in: bytes) == nil, "not in the sample") }
        #expect(try peer.finding(in: bytes)?.contains("gives 2") == true)
        #expect(try peer.finding(in: bytes) == nil, "not in the sample")
    }

    private func randomRange(_ shape: Shape, _ random: inout SplitMix) -> ByteRange {
        let blocks = shape.byteCount / 512
        let count = UInt64.random(in: 0..<4, using: &random) == 0 ? UInt64.random(in: 1...200, using: &random) : UInt64.random(in: 1...12, using: &random)
        let start = UInt64.random(in: 0..<blocks - min(count, blocks - 1), using: &random)
        return ByteRange(start: start * 512, count: count * 512, within: shape.byteCount) ?? ByteRange(ofDevice: 512)
    }

    private func contents(of bytes: [UInt8], _ base: PatternDevice?, _ data: RecordingDevice?) async throws -> [UInt8] {
        let image = try await TestImage.open(RecordingDevice(bytes), backing: base, dataFile: data, .init(isReadOnly: true))
        return try await image.bytes(at: 0, count: Int(image.info.byteCount))
    }
}
