public import Block

/// A node's device as others use it: everything but its end, which is the graph's to decide.
public final class NodeFace: ResizableDevice {
    public let info: DeviceInfo
    /// The node itself is kept while somebody uses it.
    public let node: Node
    private let device: any BlockDevice

    init(_ node: Node) {
        self.node = node
        device = node.device
        info = device.info
    }

    public func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        try await device.read(at: offset, into: &buffer)
    }

    public func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        try await device.write(at: offset, from: bytes, options)
    }

    public func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        try await device.writeZeroes(range, options)
    }

    public func discard(_ range: ByteRange) async throws(BlockError) { try await device.discard(range) }

    public func flush() async throws(BlockError) { try await device.flush() }

    public func settle() async { await device.settle() }

    public func prefetch(_ range: ByteRange) async throws(BlockError) { try await device.prefetch(range) }

    public func status(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        try await device.status(of: range, into: &extents)
    }

    public func allocationDepth(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        try await device.allocationDepth(of: range, into: &extents)
    }

    public func makeMapper() -> sending (any RangeMapper)? { device.makeMapper() }

    /// Of a device that cannot be resized: its size.
    public var currentByteCount: UInt64 { (device as? any ResizableDevice)?.currentByteCount ?? info.byteCount }

    /// - Throws: `.unsupported` for a device that cannot be resized.
    public func resize(to byteCount: UInt64) async throws(BlockError) {
        guard let resizable = device as? any ResizableDevice else {
            throw BlockError(.unsupported, "node '\(node.name)' cannot be resized")
        }
        try await resizable.resize(to: byteCount)
    }
}

extension Node {
    /// What a device that stands on this node uses.
    public var face: NodeFace { NodeFace(self) }
}
