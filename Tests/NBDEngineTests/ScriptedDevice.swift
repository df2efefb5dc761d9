import Block
import Synchronization

/// A disk in memory that does what a test tells it: holes, failures, waiting, and a diary of what it was asked.
final class ScriptedDevice: BlockDevice {
    struct Script {
        var bytes: [UInt8]
        /// Runs of status, from 0 on; what they do not cover is data.
        var extents: [(UInt64, ExtentStatus)] = []
        /// Called before anything is done.
        var failure: @Sendable (String, UInt64) -> BlockError? = { _, _ in nil }
        var diary: [String] = []
        var isGated = false
        var gated: [CheckedContinuation<Void, Never>] = []
    }

    let info: DeviceInfo
    let script: Mutex<Script>

    init(byteCount: Int = 1 << 20, isReadOnly: Bool = false) {
        info = DeviceInfo(byteCount: UInt64(byteCount), abilities: .allNative, isReadOnly: isReadOnly)
        var bytes = [UInt8](repeating: 0xA5, count: byteCount)
        for offset in stride(from: 0, to: byteCount, by: 512) { bytes[offset] = UInt8(truncatingIfNeeded: offset / 512) }
        script = Mutex(Script(bytes: bytes))
    }

    var diary: [String] { script.withLock { $0.diary } }
    var bytes: [UInt8] { script.withLock { $0.bytes } }

    func set(_ change: @Sendable (inout Script) -> Void) { script.withLock { change(&$0) } }

    /// Requests wait until `open()`.
    func close(gate: Bool) {
        let waiting = script.withLock { script in
            script.isGated = gate
            defer { if !gate { script.gated = [] } }
            return gate ? [] : script.gated
        }
        for continuation in waiting { continuation.resume() }
    }

    private func enter(_ what: String, _ offset: UInt64, _ entry: String) async throws(BlockError) {
        await withCheckedContinuation { continuation in
            let isOpen = script.withLock { script in
                script.diary.append(entry)
                if script.isGated { script.gated.append(continuation) }
                return !script.isGated
            }
            if isOpen { continuation.resume() }
        }
        if let error = script.withLock({ $0.failure })(what, offset) { throw error }
    }

    func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        let count = buffer.byteCount
        try await enter("read", offset, "read \(offset)+\(count)")
        let bytes = script.withLock { Array($0.bytes[Int(offset)..<Int(offset) + count]) }
        for (index, byte) in bytes.enumerated() { buffer.storeBytes(of: byte, toByteOffset: index, as: UInt8.self) }
    }

    func write(at offset: UInt64, from source: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        let bytes = (0..<source.byteCount).map { source[$0] }
        try await enter("write", offset, "write \(offset)+\(bytes.count)\(options.contains(.durable) ? " durable" : "")")
        script.withLock { $0.bytes.replaceSubrange(Int(offset)..<Int(offset) + bytes.count, with: bytes) }
    }

    func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        var entry = "zero \(range.start)+\(range.count)"
        if options.contains(.durable) { entry += " durable" }
        if options.contains(.mayUnmap) { entry += " unmap" }
        if options.contains(.fast) { entry += " fast" }
        try await enter("zero", range.start, entry)
        script.withLock {
            $0.bytes.replaceSubrange(Int(range.start)..<Int(range.end), with: repeatElement(0, count: Int(range.count)))
        }
    }

    func discard(_ range: ByteRange) async throws(BlockError) {
        try await enter("discard", range.start, "discard \(range.start)+\(range.count)")
    }

    func flush() async throws(BlockError) { try await enter("flush", 0, "flush") }

    func prefetch(_ range: ByteRange) async throws(BlockError) {
        try await enter("prefetch", range.start, "prefetch \(range.start)+\(range.count)")
    }

    func status(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        try await enter("status", range.start, "status \(range.start)+\(range.count)")
        var position: UInt64 = 0
        for (count, status) in script.withLock({ $0.extents }) {
            let part = ByteRange(start: position, count: count)?.clamped(to: range)
            if let part, !part.isEmpty, !extents.append(part.count, status) { return }
            position += count
        }
        if position < range.end { extents.append(range.end - max(position, range.start), .data) }
    }
}

/// Tells in a context of its own what the device tells as its status.
final class StatusSource: ExtentSource {
    private let device: any BlockDevice

    init(_ device: any BlockDevice) { self.device = device }

    func extents(of range: ByteRange, into list: inout ExtentList) async throws(BlockError) {
        try await device.status(of: range, into: &list)
    }
}
