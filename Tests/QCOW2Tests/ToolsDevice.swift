import Block
import QCOW2
import Synchronization

/// A file in memory that grows when it is written.
final class ToolsDevice: ResizableDevice {
    let info: DeviceInfo
    private let storage: Mutex<[UInt8]>

    init(_ bytes: [UInt8] = []) {
        info = DeviceInfo(byteCount: UInt64(bytes.count), blockSize: BlockSize(maximum: 1 << 16), abilities: .allNative)
        storage = Mutex(bytes)
    }

    var bytes: [UInt8] { storage.withLock { $0 } }
    var currentByteCount: UInt64 { storage.withLock { UInt64($0.count) } }

    func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        let all = bytes
        guard offset <= UInt64(all.count), buffer.byteCount <= all.count - Int(offset) else {
            throw BlockError(.outOfRange, "a read behind the end")
        }
        buffer.copy(from: all.rawBytes.extracting(Int(offset)..<Int(offset) + buffer.byteCount))
    }

    func write(at offset: UInt64, from source: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        let new = (0..<source.byteCount).map { source[$0] }
        guard offset < 1 << 28 else { throw BlockError(.noSpace, "the test's file would become too large") }
        storage.withLock { bytes in
            let end = Int(offset) + new.count
            if bytes.count < end { bytes += [UInt8](repeating: 0, count: end - bytes.count) }
            bytes.replaceSubrange(Int(offset)..<end, with: new)
        }
    }

    func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        try await write(at: range.start, from: [UInt8](repeating: 0, count: Int(range.count)).rawBytes, options)
    }

    func resize(to byteCount: UInt64) async throws(BlockError) {
        guard byteCount <= 1 << 28 else { throw BlockError(.noSpace, "the test's file would become too large") }
        storage.withLock { bytes in
            if bytes.count < Int(byteCount) {
                bytes += [UInt8](repeating: 0, count: Int(byteCount) - bytes.count)
            } else {
                bytes.removeLast(bytes.count - Int(byteCount))
            }
        }
    }

    /// Writes a big-endian number.
    func poke<T: FixedWidthInteger>(_ value: T, at offset: UInt64) {
        storage.withLock { bytes in
            for index in 0..<T.bitWidth / 8 {
                bytes[Int(offset) + index] = UInt8(truncatingIfNeeded: value >> T(T.bitWidth - 8 - 8 * index))
            }
        }
    }

    func peek(_ offset: UInt64) -> UInt64 { bytes.rawBytes.bigEndian(at: Int(offset)) }
}

/// A new image in memory whose clusters are all mapped, with clusters of 512 bytes unless told otherwise.
func mappedImage(byteCount: UInt64 = 64 << 10, _ change: (inout ImageOptions) -> Void = { _ in }) async throws -> (ToolsDevice, ImageFile) {
    var options = ImageOptions()
    options.clusterByteCount = 512
    options.preallocation = .metadata
    change(&options)
    let device = ToolsDevice()
    let image = try await ImageFile.create(device, virtualByteCount: byteCount, options)
    return (device, image)
}

/// Opens the image again and expects nothing wrong with it; with `leaks`, no more than lost clusters.
func isSound(_ device: any ResizableDevice, leaks: Bool = false) async throws -> Bool {
    let report = try await ImageFile.open(device).check()
    return report.errorCount == 0 && report.corruptionCount == 0 && (leaks || report.leakCount == 0)
}
