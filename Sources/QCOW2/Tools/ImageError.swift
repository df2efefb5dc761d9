public import Block

/// Why a tool could not do what it was asked to do to an image.
public enum ImageError: Error, Equatable, Sendable, CustomStringConvertible {
    /// The image is not what it should be.
    case format(FormatError)
    /// The file below it failed.
    case device(BlockError)
    /// The wish makes no sense for this image: what, and why.
    case refused(String)

    public var description: String {
        switch self {
        case .format(let error): error.description
        case .device(let error): error.description
        case .refused(let reason): reason
        }
    }
}

/// Runs a codec and passes on why it refuses.
func decoding<T>(_ body: () throws(FormatError) -> T) throws(ImageError) -> T {
    do throws(FormatError) { return try body() } catch { throw .format(error) }
}
