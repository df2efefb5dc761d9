public import Block

/// What a context tells of a device, as seen through a window on it (`RawWindow`).
public final class WindowedExtents: ExtentSource {
    private let source: any ExtentSource
    private let offset: UInt64

    /// - Parameter offset: of the window's first byte in the device.
    public init(_ source: any ExtentSource, offset: UInt64) {
        self.source = source
        self.offset = offset
    }

    public func extents(of range: ByteRange, into list: inout ExtentList) async throws(BlockError) {
        let (start, overflow) = offset.addingReportingOverflow(range.start)
        guard !overflow, let range = ByteRange(start: start, count: range.count) else {
            throw BlockError(.outOfRange, "\(range) behind an offset of \(offset)")
        }
        try await source.extents(of: range, into: &list)
    }
}
