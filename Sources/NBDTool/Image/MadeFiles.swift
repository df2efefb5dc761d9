import NBDProtocol

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Files that were not there before a command made them: removed again when it fails.
struct MadeFiles {
    private var files: [(path: String, identity: FileIdentity)] = []

    /// Makes an empty file, unless something is there: that is left as it is, for whoever opens it.
    mutating func make(_ path: String) throws(ToolError) {
        let descriptor = HostProcess.open(path, O_WRONLY | O_CREAT | O_EXCL, mode: 0o644)
        if descriptor >= 0 {
            close(descriptor)
            if let resolved = HostProcess.resolved(path), let identity = HostProcess.identity(of: resolved) {
                files.append((resolved, identity))
            }
            return
        }
        let reason = errno
        // A symbolic link that leads nowhere is in the way, too, and nothing is made behind it.
        guard reason == EEXIST, HostProcess.status(behind: path) != nil else {
            throw .runtime("Could not create '\(path)': \(HostProcess.text(of: reason))")
        }
    }

    /// Unless somebody has put another file in the place.
    func remove() {
        for (path, identity) in files where HostProcess.identity(of: path) == identity { _ = HostProcess.remove(path) }
    }
}
