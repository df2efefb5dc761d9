import HostIO
import Logging
import NBDProtocol

/// `--sandbox`: once everything is open, this process cannot open anything else.
///
/// What it still has to do with files is allowed: take away the files that it made, read again what it was told to watch. Everything else is
/// out of reach: for all threads, for good, and for whoever gets hold of one of them.
struct Sandbox {
    /// Files that are read again while serving: certificates, the file of an `authz-list-file`. They may be replaced, so it is their directories
    /// that stay readable.
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
            for tree in trees(logger) { try confinement.allow([.readFile, .readDirectory], beneath: tree) }
            let count = try confinement.confineProcess()
            logger.info("confined by Landlock", metadata: ["version": "\(version)", "threads": "\(count)"])
            return true
        } catch {
            throw .runtime("--sandbox: \(error)".sanitized(limit: 1000))
        }
    }

    /// Directories that must stay readable. Those that only a symbolic link leads to are told: whoever made the link may not have thought of it.
    private func trees(_ logger: Logger) -> [String] {
        var trees: [String] = []
        for path in watched {
            for (index, directory) in Self.directories(behind: path).enumerated() {
                let tree = HostProcess.resolved(directory) ?? directory
                guard !trees.contains(where: { HostProcess.lies(tree, inOrBelow: $0) }) else { continue }
                trees.append(tree)
                if index > 0 { logger.notice("the sandbox leaves '\(tree.sanitized())' readable: '\(path.sanitized())' leads there") }
            }
        }
        return trees
    }

    /// The directory that a file is in and, where the file is a symbolic link, that of what it leads to, and so on. Links among the directories of
    /// the path are not followed: one that leads elsewhere later leads out of reach.
    static func directories(behind path: String) -> [String] {
        var directories = [HostProcess.directory(of: path)]
        var path = path
        // As many as the kernel follows.
        for _ in 0..<40 {
            guard let target = HostProcess.linkTarget(path) else { break }
            path = target.utf8.first == UInt8(ascii: "/") ? target : "\(HostProcess.directory(of: path))/\(target)"
            directories.append(HostProcess.directory(of: path))
        }
        return directories
    }
}
