import HostIO
import Logging
import NBDProtocol

/// `--sandbox`: once everything is open, this process cannot open anything else.
///
/// What it still has to do with files is allowed: take away the files that it made, read again what it was told to watch. Everything else is
/// out of reach: for all threads, for good, and for whoever gets hold of one of them.
struct Sandbox {
    /// Directories of which files are read again while serving: certificates, the file of an `authz-list-file`.
    var watched: [String] = []
    /// What will be taken away at the end.
    var owned: [OwnedFiles.Place] = []
    /// A child (`--run`) is signalled at the end; a service manager behind an abstract socket is told.
    var keepsSignals = false

    /// - Returns: whether the process is confined now.
    /// - Throws: `.runtime` when `mode` is `.require` and the kernel cannot, or when it can and fails.
    func enter(_ mode: AccessPlan.Sandbox, logger: Logger) throws(ToolError) -> Bool {
        guard mode != .off else { return false }
        guard let version = Confinement.version else {
            guard mode != .require else {
                throw .runtime("--sandbox require: this kernel has no Landlock (Linux 5.13 and later, with landlock in its list of security modules)")
            }
            logger.info("no sandbox: this kernel has no Landlock")
            return false
        }
        do throws(HostError) {
            let confinement = try Confinement(keepsSignals: keepsSignals)
            try confinement.allow([.readFile, .writeFile], beneath: "/dev/null")  // with --fork, the standard streams become it
            for place in owned {
                try confinement.allow(place.isDirectory ? .removeDirectory : .removeFile, beneath: place.parent)
            }
            for path in watched { try confinement.allow([.readFile, .readDirectory], beneath: path) }
            let count = try confinement.confineProcess()
            logger.info("confined by Landlock", metadata: ["version": "\(version)", "threads": "\(count)"])
            return true
        } catch {
            throw .runtime("--sandbox: \(error)".sanitized(limit: 1000))
        }
    }

    /// The directory that a file is in.
    static func directory(of path: String) -> String {
        guard let slash = path.lastIndex(of: "/") else { return "." }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }
}
