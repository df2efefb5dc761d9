import Block
import Testing

@testable import QCOW2

/// Power is cut at every step of a tool that changes an image, also with the writes since the last flush in another order or lost in part.
/// The image is then as before or as after, in all that can be seen of it, and at most clusters are lost; what a snapshot makes shared may
/// for a moment be marked as if it was not worth a copy, or the other way round, where no write could hurt.
@Suite struct `Power cuts of tools` {
    enum Operation: String, Sendable, CaseIterable, CustomTestStringConvertible {
        case grow, shrink, addBitmap, removeBitmap, clearBitmap, createSnapshot, deleteSnapshot, applySnapshot

        var testDescription: String { rawValue }
        var changesReferences: Bool { [.createSnapshot, .deleteSnapshot, .applySnapshot].contains(self) }

        func run(_ image: ImageFile) async throws {
            switch self {
            case .grow: try await image.resize(to: 100 << 10, mayShrink: false)
            case .shrink: try await image.resize(to: 20 << 10, mayShrink: true)
            case .addBitmap: try await image.addBitmap(Array("new".utf8))
            case .removeBitmap: try await image.removeBitmap(Array("old".utf8))
            case .clearBitmap: try await image.clearBitmap(Array("old".utf8))
            case .createSnapshot: try await image.createSnapshot(Array("third".utf8), time: (7, 8))
            case .deleteSnapshot: try await image.deleteSnapshot(named: Array("first".utf8))
            case .applySnapshot: try await image.applySnapshot(Array("first".utf8))
            }
        }
    }

    /// All that can be seen of an image.
    struct Sight: Equatable {
        var guest: [UInt8]
        var bitmaps: [BitmapBits]
        var names: [[UInt8]]
        var snapshots: [[UInt8]]

        init(_ bytes: [UInt8]) async throws {
            let file = RecordingDevice(bytes)
            let image = try await ImageFile.open(file)
            guest = try await Self.contents(file)
            let entries = try await image.bitmaps()
            names = entries.map(\.name)
            bitmaps = []
            for entry in entries { bitmaps.append(try await image.bitmapBits(entry.name)) }
            snapshots = []
            for snapshot in try await image.snapshots() {
                names.append(snapshot.name)
                snapshots.append(try await Self.contents(file, SnapshotSelector(id: String(decoding: snapshot.id, as: UTF8.self))))
            }
        }

        private static func contents(_ file: RecordingDevice, _ snapshot: SnapshotSelector? = nil) async throws -> [UInt8] {
            let image = try await TestImage.open(file, .init(isReadOnly: true, snapshot: snapshot))
            return try await image.bytes(at: 0, count: Int(image.info.byteCount))
        }
    }

    /// - Parameter left: how many clusters can still be had before the refcount table must grow; nil: thousands.
    @Test(arguments: Operation.allCases.map { ($0, nil) } + [(.grow, 1), (.addBitmap, 1), (.createSnapshot, 1)])
    func `leave an image as before or as after`(operation: Operation, left: UInt64?) async throws {
        let seed = Seed.value
        // A snapshot is not applied while there are bitmaps.
        let bytes = try await image(left, hasBitmaps: operation != .applySnapshot)
        let before = try await Sight(bytes)
        let isRich = before.bitmaps.count == (operation == .applySnapshot ? 0 : 2) && before.snapshots.count == 2
            && before.snapshots[0] != before.snapshots[1]
        #expect(isRich)
        let file = RecordingDevice(bytes)
        try await operation.run(try await ImageFile.open(file))
        let after = try await Sight(file.bytes)
        let isChanged = after != before
        #expect(isChanged)
        #expect(try await findings(file.bytes, repair: nil).isEmpty)
        var failures = 0
        var cuts = 0
        let peer = try QEMUImg(limit: 5)
        try await PowerCuts(device: file).forEach(samples: left == nil ? 1 : 0, seed: seed) { step, medium, _ in
            guard failures == 0 else { return }
            cuts += 1
            var wrong = try ReferenceCheck(medium).errors
            // Slow: most of all to tell of thousands of lost clusters.
            if cuts % (left == nil ? 3 : 16) == 0 {
                wrong += try await findings(medium, repair: nil).filter { !operation.changesReferences || !$0.contains("one reference and") }
            }
            // The same of qemu-img: its word for the mark of one reference.
            let told = try peer?.finding(in: medium) { operation.changesReferences && $0.hasPrefix("ERROR OFLAG_COPIED ") }
            if let told { wrong.append(told) }
            let now = try await Sight(medium)
            if now != before, now != after { wrong.append("neither before nor after: \(now.names.map { String(decoding: $0, as: UTF8.self) })") }
            if left == nil, cuts % 12 == 0 { wrong += try await findings(medium, repair: .all) }
            if let first = wrong.first {
                failures += 1
                Issue.record("cut at step \(step): \(first) SEED=\(seed)")
            }
        }
        #expect(cuts > 4)
    }

    /// What a check calls an error; with `repair`, what is left after it.
    private func findings(_ bytes: [UInt8], repair: RepairMode?) async throws -> [String] {
        let file = RecordingDevice(bytes)
        if let repair {
            let before = try await Sight(bytes)
            _ = try await ImageFile.open(file).check(repair: repair)
            guard try await Sight(file.bytes) == before else { return ["the repair has changed what can be seen"] }
        }
        let report = try await ImageFile.open(file).check()
        return report.findings.filter { $0.hasPrefix("ERROR") } + (report.errorCount > 0 ? ["\(report.errorCount) errors"] : [])
            + (repair != nil && report.leakCount > 0 ? ["\(report.leakCount) leaks"] : [])
    }

    /// A small disk with two snapshots, and two bitmaps unless told otherwise, in clusters of 512 bytes with refcounts of 64 bits: so every 64th cluster needs a
    /// block of them.
    private func image(_ left: UInt64?, hasBitmaps: Bool) async throws -> [UInt8] {
        let file = RecordingDevice([])
        var options = ImageOptions()
        options.clusterByteCount = 512
        options.refcountBitCount = 64
        let image = try await ImageFile.create(file, virtualByteCount: 40 << 10, options)
        if hasBitmaps {
            try await image.addBitmap(Array("kept".utf8), granularity: 512)
            try await image.addBitmap(Array("old".utf8), granularity: 1024)
        }
        try await write(1, at: 5000, count: 12_000, file)
        try await ImageFile.open(file).createSnapshot(Array("first".utf8), time: (1, 2))
        try await write(2, at: 10_000, count: 20_000, file)
        try await ImageFile.open(file).createSnapshot(Array("second".utf8), time: (3, 4))
        try await write(3, at: 15_000, count: 23_000, file)
        guard let left else { return file.bytes }
        // Lost clusters, as after a power cut: the table has room for 64 blocks.
        let editor = try await ImageEditor(try await ImageFile.open(file))
        while try await editor.allocate(clusterCount: 1) >> 9 < 64 * 64 - 1 - left {}
        try await editor.save()
        return file.bytes
    }

    private func write(_ byte: UInt8, at offset: UInt64, count: Int, _ file: RecordingDevice) async throws {
        let disk = try await TestImage.open(file)
        try await disk.write(at: offset, from: [UInt8](repeating: byte, count: count).rawBytes, [])
        await disk.close()
    }
}
