internal import Block

/// Persistent dirty bitmaps of an open image.
final class BitmapStore: Sendable {
    static func open(_ metadata: Metadata, _ header: ImageHeader, virtualByteCount: UInt64) async throws(BlockError) -> BitmapStore? { nil }
    func store() async throws(BlockError) {}
}
