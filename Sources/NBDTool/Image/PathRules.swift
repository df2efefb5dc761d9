import NBDProtocol

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Which files an image may name.
///
/// An image comes from strangers and can name any file of the host, whose contents its guest would then read or write. So what it names
/// has to lie in its own directory, or below one that the operator allows.
struct PathRules {
    /// Directories, as the operator wrote them. `/` allows all.
    var allowed: [String] = []

    /// - Throws: `.runtime` naming both, when `path`, links followed, is not allowed to the image at `image`; also when it is not there.
    func check(_ path: String, namedBy image: String) throws(ToolError) {
        guard let real = Self.real(path) else { throw .runtime("'\(image)' names '\(path)', which is not there") }
        let own = Self.directory(of: Self.real(image) ?? image)
        guard Self.directory(of: real) != own else { return }
        for directory in allowed {
            guard let root = Self.real(directory) else { continue }
            if real == root || real.hasPrefix(root == "/" ? "/" : root + "/") { return }
        }
        throw .runtime("'\(image)' names '\(path)', which is not in its own directory: --allow-path \(Self.directory(of: path)) allows it")
    }

    private static func directory(of path: String) -> String {
        guard let slash = path.lastIndex(of: "/") else { return "." }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }

    /// The path without links and dots; nil when nothing is there.
    private static func real(_ path: String) -> String? {
        // SAFETY: with a null buffer the result is a string that was allocated for us: copied, then freed.
        guard let text = unsafe realpath(path, nil) else { return nil }
        defer { unsafe free(text) }
        return unsafe String(cString: text)
    }
}
