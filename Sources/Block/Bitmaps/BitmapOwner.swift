/// A device with dirty bitmaps of its own: an image that stores them.
///
/// The device calls `record` on them itself, for every write, write of zeroes and discard, before that is answered, also when it failed half
/// way, and for mapped writes in its mapper's `didWrite` (S-BLK-23).
public protocol BitmapOwner: AnyObject, Sendable {
    /// In the order of their creation; names are unique.
    var bitmaps: [DirtyBitmap] { get }
}

extension BitmapOwner {
    public func bitmap(named name: String) -> DirtyBitmap? { bitmaps.first { $0.name == name } }
}
