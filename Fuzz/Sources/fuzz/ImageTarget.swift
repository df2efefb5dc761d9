import Block
import QCOW2
import Synchronization

/// A hostile qcow2 image. Input: one byte of what is done with it, then the file.
///
/// Promises: no trap; no read or write that the file did not ask for (the device below traps on those); bounded work; the map covers the
/// disk without gaps; a repaired image has no leaks left and no new corruptions; and one that was in order is so after writes.
@Sendable func fuzzImage(_ input: [UInt8]) {
    guard let choice = input.first else { return }
    let file = Array(input.dropFirst())
    runToEnd {
        do {
            let image = try await ImageFile.open(FuzzFile(file))
            _ = try? await image.snapshots()
            for bitmap in (try? await image.bitmaps()) ?? [] { _ = try? await image.bitmapBits(bitmap.name) }
            await walk(image)
            let before = try await image.check()
            await serve(file, isReadOnly: true, choice)
            switch choice & 3 {
            case 0: try await repair(file)
            case 1 where before.isInOrder: await serve(file, isReadOnly: false, choice)
            case 2 where before.isInOrder: try await change(file, choice)
            default: break
            }
        } catch {}
    }
}

extension CheckReport {
    fileprivate var isInOrder: Bool { errorCount == 0 && corruptionCount == 0 && leakCount == 0 }
}

/// Runs of the map follow each other and make progress; only some, as a disk may have 2^63 bytes.
private func walk(_ image: ImageFile) async {
    guard let map = try? await ImageMap(image) else { return }
    var offset: UInt64 = 0
    for _ in 0..<200 where offset < image.header.virtualByteCount {
        guard let run = try? await map.run(at: offset, limit: .max) else { return }
        precondition(run.byteCount > 0 && run.byteCount <= image.header.virtualByteCount - offset, "a run of \(run.byteCount) bytes")
        offset += run.byteCount
    }
}

private func repair(_ file: [UInt8]) async throws {
    let device = FuzzFile(file)
    let repaired = try await ImageFile.open(device).check(repair: .all)
    guard repaired.errorCount == 0 else { return }
    let after = try await ImageFile.open(device).check()
    precondition(after.leakCount == 0, "leaks after a repair: \(after.findings)")
    precondition(after.corruptionCount <= repaired.corruptionCount, "a repair corrupts: \(repaired.findings) \(after.findings)")
}

/// The tools that change an image; whether they succeed or refuse, it stays in order, at most with lost clusters.
private func change(_ file: [UInt8], _ choice: UInt8) async throws {
    let device = FuzzFile(file)
    let image = try await ImageFile.open(device)
    let old = image.header.virtualByteCount
    _ = try? await image.addBitmap(Array("fuzz".utf8), granularity: 512 << UInt64(choice >> 6))
    _ = try? await image.createSnapshot(Array("fuzz".utf8), time: (1, 1))
    _ = try? await image.resize(to: choice & 4 == 0 ? old / 2 : old + (old & 0xff_ffff), mayShrink: true)
    if choice & 8 != 0 { _ = try? await image.deleteSnapshot(named: Array("fuzz".utf8)) }
    if choice & 16 != 0 { _ = try? await image.removeBitmap(Array("fuzz".utf8)) }
    let after = try await ImageFile.open(device).check()
    precondition(after.corruptionCount == 0, "a change corrupts: \(after.findings)")
}

/// Opens the image as a disk, reads here and there, and writes if it may.
private func serve(_ file: [UInt8], isReadOnly: Bool, _ choice: UInt8) async {
    let device = FuzzFile(file)
    guard let header = try? await ImageHeader.read(from: device), !header.hasDataFile else { return }
    guard let image = try? await QCOW2Image.open(header, on: device, QCOW2Image.Options(isReadOnly: isReadOnly)) else { return }
    let size = image.info.byteCount
    let step = UInt64(header.clusterByteCount)
    for index in 0..<24 as Range<UInt64> {
        // The first clusters, some far ones, the last.
        let offset = index < 16 ? index * step : size - min(size, (index - 15) * step)
        let count = min(index == 3 ? 3 * step : step, 64 << 10)
        guard let range = ByteRange(start: offset, count: count, within: size), !range.isEmpty else { continue }
        var bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: index), count: Int(count))
        if !isReadOnly {
            if index % 4 == 1 {
                _ = try? await image.writeZeroes(range, choice & 4 == 0 ? [] : .mayUnmap)
            } else if index % 4 == 2 {
                try? await image.discard(range)
            } else {
                try? await image.write(at: offset, from: bytes.rawBytes, [])
            }
        }
        var list = ExtentList(byteCountLimit: range.count, extentCountLimit: 16)
        try? await image.status(of: range, into: &list)
        precondition(list.byteCount <= range.count)
        var depths = ExtentList(byteCountLimit: range.count, extentCountLimit: 16)
        try? await image.allocationDepth(of: range, into: &depths)
        var span = bytes.mutableSpan
        // SAFETY: any bit pattern is a byte.
        var raw = unsafe span.mutableBytes
        try? await image.read(at: offset, into: &raw)
    }
    try? await image.flush()
    await image.close()
    guard !isReadOnly else { return }
    guard let after = try? await ImageFile.open(FuzzFile(device.bytes)).check() else { return }
    precondition(after.corruptionCount == 0, "writing corrupts: \(after.findings)")
}

/// A file of at most 4 MiB.
private final class FuzzFile: ResizableDevice {
    static let byteCountLimit: UInt64 = 4 << 20
    let info: DeviceInfo
    private let storage: Mutex<[UInt8]>

    init(_ bytes: [UInt8]) {
        info = DeviceInfo(byteCount: UInt64(bytes.count), abilities: .allNative)
        storage = Mutex(bytes)
    }

    var bytes: [UInt8] { storage.withLock { $0 } }
    var currentByteCount: UInt64 { storage.withLock { UInt64($0.count) } }

    func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        let all = bytes
        precondition(offset <= UInt64(all.count) && buffer.byteCount <= all.count - Int(offset), "a read at \(offset), behind the end")
        buffer.copy(from: all.rawBytes.extracting(Int(offset)..<Int(offset) + buffer.byteCount))
    }

    func write(at offset: UInt64, from source: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        let new = (0..<source.byteCount).map { source[$0] }
        try put(new, at: offset)
    }

    func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        guard range.end <= Self.byteCountLimit else { throw BlockError(.noSpace, "the file would become too large") }
        try put([UInt8](repeating: 0, count: Int(range.count)), at: range.start)
    }

    private func put(_ new: [UInt8], at offset: UInt64) throws(BlockError) {
        guard offset <= Self.byteCountLimit, UInt64(new.count) <= Self.byteCountLimit - offset else {
            throw BlockError(.noSpace, "the file would become too large")
        }
        storage.withLock { bytes in
            let end = Int(offset) + new.count
            if bytes.count < end { bytes += [UInt8](repeating: 0, count: end - bytes.count) }
            bytes.replaceSubrange(Int(offset)..<end, with: new)
        }
    }

    func resize(to byteCount: UInt64) async throws(BlockError) {
        guard byteCount <= Self.byteCountLimit else { throw BlockError(.noSpace, "the file would become too large") }
        storage.withLock { bytes in
            if bytes.count < Int(byteCount) {
                bytes += [UInt8](repeating: 0, count: Int(byteCount) - bytes.count)
            } else {
                bytes.removeLast(bytes.count - Int(byteCount))
            }
        }
    }
}
