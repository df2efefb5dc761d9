import Synchronization

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// The files this process made and takes away when it ends: socket files, the pid file, directories of private sockets.
final class OwnedFiles: Sendable {
    private enum Kind { case file, directory }
    private struct Item {
        var path: String
        var kind: Kind
        /// Which file of that name is ours: somebody may have put another in its place.
        var identity: Identity
    }
    private struct Identity: Equatable {
        var device: UInt64
        var number: UInt64
    }

    private let items = Mutex<[Item]>([])

    /// Where something will be taken away.
    struct Place: Equatable, Sendable {
        let parent: String
        let isDirectory: Bool
    }

    var places: [Place] {
        items.withLock { items in items.map { Place(parent: HostProcess.directory(of: $0.path), isDirectory: $0.kind == .directory) } }
    }

    /// Removes everything, newest first. May be called more than once and from any thread.
    func removeAll() {
        let items = items.withLock { items in
            defer { items = [] }
            return items
        }
        for item in items.reversed() where Self.identity(item.path)?.identity == item.identity {
            _ = item.kind == .directory ? HostProcess.removeDirectory(item.path) : HostProcess.remove(item.path)
        }
    }

    /// From now on `path`, which exists, is ours.
    func adopt(_ path: String) {
        add(path, .file)
    }

    /// Writes the process id and a line break to `path`, all at once: a reader sees the whole file or none.
    ///
    /// - Throws: `.runtime` naming the path.
    func writePIDFile(_ path: String) throws(ToolError) {
        let draft = "\(path).\(getpid()).tmp"
        let descriptor = HostProcess.open(draft, O_WRONLY | O_CREAT | O_EXCL, mode: 0o644)
        guard descriptor >= 0 else { throw .runtime("Could not create '\(path)': \(HostProcess.text(of: errno))") }
        var error = HostProcess.write(Array("\(getpid())\n".utf8), to: descriptor)
        if close(descriptor) != 0, error == nil { error = errno }
        if error == nil, HostProcess.move(draft, to: path) != 0 { error = errno }
        if let error {
            _ = HostProcess.remove(draft)
            throw .runtime("Could not write '\(path)': \(HostProcess.text(of: error))")
        }
        add(path, .file)
    }

    /// Makes a directory that only this user can enter, under `TMPDIR` or /tmp, and returns the name of a socket to be made inside.
    ///
    /// - Throws: `.runtime` naming the directory.
    func makePrivateSocketPath() throws(ToolError) -> String {
        var parent = HostProcess.variable("TMPDIR") ?? "/tmp"
        if parent.isEmpty || parent.utf8.count + "/nbd-0123456789abcdef/socket".utf8.count > HostProcess.socketPathLimit { parent = "/tmp" }
        for _ in 0..<16 {
            let digits = String(UInt64.random(in: 0...UInt64.max), radix: 16)
            let directory = "\(parent)/nbd-\(String(repeating: "0", count: 16 - digits.count))\(digits)"
            if HostProcess.makeDirectory(directory, mode: 0o700) == 0 {
                add(directory, .directory)
                return "\(directory)/socket"
            }
            guard errno == EEXIST else { throw .runtime("cannot make directory '\(directory)': \(HostProcess.text(of: errno))") }
        }
        throw .runtime("cannot make a directory for a socket in '\(parent)': all names are taken")
    }

    /// Makes way for a Unix socket at `path`: takes away the socket file of a server that is gone.
    ///
    /// qemu-nbd takes away whatever is there, be it the socket of a living server or an image. Here those stay.
    ///
    /// - Throws: `.runtime` when a server answers there, or the file is not a socket.
    static func clearStaleSocket(_ path: String) throws(ToolError) {
        guard let found = identity(path) else { return }
        guard found.isSocket else { throw .runtime("cannot listen on '\(path)': a file that is not a socket is in the way") }
        let descriptor = socket(AF_UNIX, HostProcess.streamType, 0)
        guard descriptor >= 0 else { throw .runtime("cannot make a socket: \(HostProcess.text(of: errno))") }
        defer { close(descriptor) }
        // Not blocking: a server whose backlog is full answers EAGAIN, and is alive.
        _ = fcntl(descriptor, F_SETFL, O_NONBLOCK)
        // SAFETY: the address is valid during the call.
        let error = unsafe HostProcess.withAddress(ofUnixSocket: path) { address, length in
            unsafe connect(descriptor, address, length) == 0 ? 0 : errno
        }
        guard error == ECONNREFUSED else { throw .runtime("cannot listen on '\(path)': Address already in use") }
        guard HostProcess.remove(path) == 0 || errno == ENOENT else {
            throw .runtime("cannot remove the old socket '\(path)': \(HostProcess.text(of: errno))")
        }
    }

    private func add(_ path: String, _ kind: Kind) {
        guard let found = Self.identity(path) else { return }
        items.withLock { $0.append(Item(path: path, kind: kind, identity: found.identity)) }
    }

    private static func identity(_ path: String) -> (identity: Identity, isSocket: Bool)? {
        guard let status = HostProcess.status(of: path) else { return nil }
        let identity = Identity(device: UInt64(truncatingIfNeeded: status.st_dev), number: UInt64(truncatingIfNeeded: status.st_ino))
        return (identity, status.st_mode & S_IFMT == S_IFSOCK)
    }
}
