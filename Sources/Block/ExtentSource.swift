/// What one metadata context tells of a device's bytes: runs with a 32-bit value each (`ExtentStatus.rawValue` goes on the wire).
public protocol ExtentSource: AnyObject, Sendable {
    /// Appends the runs of `range` from its start on, at least one byte of it; stops at its end or when the list is full.
    ///
    /// Ranges lie inside the device, and have any alignment.
    func extents(of range: ByteRange, into list: inout ExtentList) async throws(BlockError)
}

/// The context `qemu:allocation-depth` of a device (S-BST-08).
public final class AllocationDepth: ExtentSource {
    private let device: any BlockDevice

    public init(_ device: any BlockDevice) {
        self.device = Emulation(device)
    }

    public func extents(of range: ByteRange, into list: inout ExtentList) async throws(BlockError) {
        try await device.allocationDepth(of: range, into: &list)
    }
}
