/// A device whose size can change: the file below an image format.
///
/// `info.byteCount` is what the size was when the device was opened; requests may go beyond it. A write behind the end makes the device
/// longer, with zeroes in between; a read behind the end fails.
public protocol ResizableDevice: BlockDevice {
    /// In bytes, now.
    var currentByteCount: UInt64 { get }

    /// Makes the device longer, with zeroes, or shorter. No write that reaches behind the smaller of the two sizes may run meanwhile.
    ///
    /// - Throws: `.noSpace` when a disk has not as many bytes; a disk that has more keeps its size.
    func resize(to byteCount: UInt64) async throws(BlockError)
}
