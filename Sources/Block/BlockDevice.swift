/// A random-access array of bytes that survives flushes.
///
/// Requests may run at the same time and in any order; overlapping writes in flight end as either of the two. A write is durable once a
/// later `flush()`, or its own `.durable` option, has returned. Ranges lie inside the device, lengths are at most `info.blockSize.maximum`
/// for `read` and `write`, and everything is aligned to `info.blockSize.minimum`: callers see to that (`Emulation`). After a failed
/// write the contents of its range are undefined: old, new or mixed.
///
/// Only `info` and `read` must be written. A read-only device is complete with those two; a writable one adds `write`. What else the
/// device does itself it declares in `info.abilities`.
///
///     actor Scratch: BlockDevice {
///         nonisolated let info = DeviceInfo(byteCount: 1 << 20)
///         …
///     }
public protocol BlockDevice: AnyObject, Sendable {
    var info: DeviceInfo { get }

    /// Fills the whole buffer with the bytes at `offset`, or throws; never less.
    func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError)

    /// Writes all bytes at `offset`, or throws. Options: `.durable`.
    func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError)

    /// Makes `range`, of any length, read back as zeroes. Options: all.
    func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError)

    /// The contents of `range` are no longer needed; afterwards they are undefined. A hint: doing nothing is success.
    func discard(_ range: ByteRange) async throws(BlockError)

    /// Returns when every write that has returned before this call is durable.
    func flush() async throws(BlockError)

    /// `range` will soon be read (NBD_CMD_CACHE). Never writes.
    func prefetch(_ range: ByteRange) async throws(BlockError)

    /// Appends the status of `range` from its start on, at least one byte of it, and stops at its end or when the list is full.
    func status(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError)

    /// Appends how many images down each run of `range` is allocated, by the rules of `status` (S-BST-08): 0 nowhere, 1 in this image, n in
    /// the n-th of its chain, as `ExtentStatus(rawValue: n)`. A device that is no chain of images is all 1.
    func allocationDepth(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError)

    /// The fast face of the device for one event loop; nil when there is none.
    func makeMapper() -> sending (any RangeMapper)?

    /// Nobody uses the device for now: what it would write at its end it should write already, so that a crash from here on takes nothing.
    /// Requests may come at any time, also meanwhile. A hint: doing nothing is right.
    func settle() async

    /// Called once, after the last request has returned. Later requests fail.
    func close() async
}

extension BlockDevice {
    public func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        throw BlockError(.readOnly, "this device cannot be written")
    }

    public func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        throw BlockError(.unsupported, "this device does not write zeroes itself")
    }

    public func discard(_ range: ByteRange) async throws(BlockError) {}

    public func flush() async throws(BlockError) {}

    public func prefetch(_ range: ByteRange) async throws(BlockError) {}

    public func status(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        extents.append(range.count, .data)
    }

    public func allocationDepth(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        extents.append(range.count, .depth(1))
    }

    public func makeMapper() -> sending (any RangeMapper)? { nil }

    public func settle() async {}

    public func close() async {}
}
