import Logging
import NBDProtocol
import NBDServer
import Synchronization

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// What `--tls-authz` names, at work: keeps the list, and reads its file again when that has changed.
final class TLSAuthorization: Sendable {
    /// How often the file is looked at. In the background: no client waits for it, however slow its disk.
    private static let pause = Duration.seconds(1)

    private let list: Mutex<NameList>
    /// nil: nothing to be read again.
    private let path: String?
    /// Of the file, before it was read first.
    private let version: Version?
    private let logger: Logger

    /// - Throws: `.runtime` naming a file that cannot be read or does not make sense.
    init(_ plan: AuthorizationPlan, logger: Logger) throws(ToolError) {
        self.logger = logger
        switch plan {
        case .list(let list):
            self.list = Mutex(list)
            path = nil
            version = nil
        case .file(let path, let refreshes):
            version = Version(path)
            list = Mutex(try Self.read(path))
            self.path = refreshes ? path : nil
        }
    }

    /// Whether a client may come in. One that has proved no name may not.
    func allows(_ peer: PeerIdentity) -> Bool {
        guard let name = peer.tlsName else { return false }
        return list.withLock { $0.allows(name) }
    }

    /// Reads the file again whenever it has changed, until the task is cancelled. A file that makes no sense, or is not there, changes
    /// nothing but the log.
    func watch() async {
        guard let path else { return }
        var seen = version
        while (try? await Task.sleep(for: Self.pause)) != nil {
            seen = await HostProcess.blocking { [seen] in self.look(at: path, seen) }
        }
    }

    /// Returns the version that is known now. May wait for the file's disk.
    private func look(at path: String, _ seen: Version?) -> Version? {
        let version = Version(path)
        guard version != seen else { return seen }
        do throws(ToolError) {
            let new = try Self.read(path)
            list.withLock { $0 = new }
            logger.notice("read '\(path.sanitized())' again: \(new.rules.count) rules")
        } catch {
            logger.error("cannot read the list of who may come in again, the one from before stays: \(error)")
        }
        return version
    }

    private static func read(_ path: String) throws(ToolError) -> NameList {
        try NameList(contents: HostProcess.contents(of: path, limit: NameList.byteLimit), path: path)
    }

    /// Changes when the file does: written in place or replaced.
    private struct Version: Equatable {
        var number: UInt64
        var byteCount: Int64
        var seconds: Int
        var nanoseconds: Int

        /// nil when there is nothing of that name. Follows symbolic links, as a mounted secret of a cluster has them.
        init?(_ path: String) {
            guard let status = HostProcess.status(behind: path) else { return nil }
            number = UInt64(truncatingIfNeeded: status.st_ino)
            byteCount = Int64(truncatingIfNeeded: status.st_size)
            #if canImport(Darwin)
            (seconds, nanoseconds) = (status.st_mtimespec.tv_sec, status.st_mtimespec.tv_nsec)
            #else
            (seconds, nanoseconds) = (status.st_mtim.tv_sec, status.st_mtim.tv_nsec)
            #endif
        }
    }
}
