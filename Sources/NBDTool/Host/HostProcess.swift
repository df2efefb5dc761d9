import Dispatch

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Which file it is, whatever it is called.
struct FileIdentity: Hashable, Sendable {
    var device: UInt64
    var number: UInt64
}

/// The system calls of the tool itself, with Swift's types: descriptors, small files, the environment. Images are `HostIO`'s matter.
enum HostProcess {
    /// Longest name of a Unix socket in bytes, its terminating NUL left out.
    #if canImport(Darwin)
    static let socketPathLimit = 103
    #else
    static let socketPathLimit = 107
    #endif

    /// "No such file or directory": the text of an error number.
    static func text(of error: Int32) -> String {
        // SAFETY: strerror returns a NUL-terminated string that stays valid until the next call on this thread.
        unsafe String(cString: strerror(error))
    }

    // MARK: The environment

    static func variable(_ name: String) -> String? {
        // SAFETY: getenv returns nil or a NUL-terminated string; it is copied before anything changes the environment.
        guard let value = unsafe getenv(name) else { return nil }
        return unsafe String(cString: value)
    }

    /// Only while the process has a single thread: before the server starts.
    static func set(variable name: String, to value: String?) {
        // SAFETY: both calls copy the strings, which are valid while they run.
        if let value { _ = unsafe setenv(name, value, 1) } else { _ = unsafe unsetenv(name) }
    }

    // MARK: Descriptors

    /// Writes all bytes, or returns the error number.
    @discardableResult
    static func write(_ bytes: [UInt8], to descriptor: Int32) -> Int32? {
        var done = 0
        while done < bytes.count {
            // SAFETY: the slice is valid during the call, and its own count is passed.
            let count = unsafe bytes[done...].withUnsafeBytes { unsafe systemWrite(descriptor, $0.baseAddress, $0.count) }
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { return errno }
            done += count
        }
        return nil
    }

    /// Runs what may wait for long without holding up a thread of the concurrency pool.
    static func blocking<Result: Sendable>(_ body: @escaping @Sendable () -> Result) async -> Result {
        await withCheckedContinuation { continuation in
            DispatchQueue.global().async { continuation.resume(returning: body()) }
        }
    }

    /// Writes one byte if there is room. May be called by a signal handler.
    static func writeByte(_ byte: UInt8, to descriptor: Int32) {
        var byte = byte
        // SAFETY: the pointer to one byte is valid during the call.
        _ = unsafe systemWrite(descriptor, &byte, 1)
    }

    /// A pipe that children do not inherit.
    static func makePipe() throws(ToolError) -> (read: Int32, write: Int32) {
        var ends: [Int32] = [-1, -1]
        // SAFETY: the array has room for two descriptors.
        guard unsafe pipe(&ends) == 0 else { throw .runtime("cannot make a pipe: \(text(of: errno))") }
        for end in ends { setCloseOnExec(end, true) }
        return (ends[0], ends[1])
    }

    /// The next bytes, at most `limit`; empty at the end of the file and on errors.
    static func read(from descriptor: Int32, limit: Int) -> [UInt8] {
        // SAFETY: the call gets a buffer of `limit` bytes, and the number it returns says how many of them it has filled.
        unsafe [UInt8](unsafeUninitializedCapacity: limit) { buffer, count in
            var result = 0
            repeat { result = unsafe systemRead(descriptor, buffer.baseAddress, limit) } while result < 0 && errno == EINTR
            count = max(result, 0)
        }
    }

    /// The bytes of a small file. A pipe without a writer is an empty one.
    /// - Throws: `.runtime` naming the path, also when the file is longer than `limit` bytes.
    static func contents(of path: String, limit: Int) throws(ToolError) -> [UInt8] {
        let descriptor = open(path, O_RDONLY | O_NONBLOCK)
        guard descriptor >= 0 else { throw .runtime("cannot open '\(path)': \(text(of: errno))") }
        defer { close(descriptor) }
        _ = fcntl(descriptor, F_SETFL, O_RDONLY)  // a writer that is there is waited for
        var contents: [UInt8] = []
        while contents.count <= limit {
            let piece = read(from: descriptor, limit: 65536)
            if piece.isEmpty { return contents }
            contents += piece
        }
        throw .runtime("'\(path)' is larger than \(limit) bytes")
    }

    // MARK: Paths
    //
    // SAFETY, for all of them: a Swift string is passed as a NUL-terminated one that is valid during the call.

    /// A descriptor that children do not inherit, or a negative number and `errno`.
    static func open(_ path: String, _ flags: Int32, mode: mode_t = 0) -> Int32 {
        // SAFETY: see above.
        unsafe systemOpen(path, flags | O_CLOEXEC, mode)
    }

    /// An empty file that was not there before.
    static func create(_ path: String, mode: mode_t) throws(ToolError) {
        let descriptor = open(path, O_CREAT | O_EXCL | O_RDWR, mode: mode)
        guard descriptor >= 0 else { throw .runtime("cannot make '\(path)': \(text(of: errno))") }
        close(descriptor)
    }

    static func remove(_ path: String) -> Int32 {
        // SAFETY: see above.
        unsafe unlink(path)
    }

    static func removeDirectory(_ path: String) -> Int32 {
        // SAFETY: see above.
        unsafe rmdir(path)
    }

    static func makeDirectory(_ path: String, mode: mode_t) -> Int32 {
        // SAFETY: see above.
        unsafe mkdir(path, mode)
    }

    static func move(_ path: String, to destination: String) -> Int32 {
        // SAFETY: see above.
        unsafe rename(path, destination)
    }

    /// nil when there is nothing of that name.
    static func status(of path: String) -> stat? {
        var status = stat()
        // SAFETY: see above; `status` is valid during the call.
        return unsafe lstat(path, &status) == 0 ? status : nil
    }

    /// Of what a symbolic link leads to.
    static func status(behind path: String) -> stat? {
        var status = stat()
        // SAFETY: see above; `status` is valid during the call.
        return unsafe stat(path, &status) == 0 ? status : nil
    }

    /// Of what a path leads to, symbolic links followed; nil when it leads nowhere.
    static func identity(of path: String) -> FileIdentity? {
        guard let status = status(behind: path) else { return nil }
        return FileIdentity(device: UInt64(status.st_dev), number: UInt64(status.st_ino))
    }

    /// The path without symbolic links and dots; nil, and `errno`, when there is nothing.
    static func resolved(_ path: String) -> String? {
        // SAFETY: see above; the call allocates what it returns, and it is freed once it was copied.
        guard let resolved = unsafe realpath(path, nil) else { return nil }
        defer { unsafe free(resolved) }
        return unsafe String(cString: resolved)
    }

    /// The directory that a file is in, as the path says it.
    static func directory(of path: String) -> String {
        guard let slash = path.lastIndex(of: "/") else { return "." }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }

    /// Whether a path is that of `root` or of something below it. Both without symbolic links and dots.
    static func lies(_ path: String, inOrBelow root: String) -> Bool {
        path == root || path.hasPrefix(root == "/" ? root : root + "/")
    }

    /// What a symbolic link says; nil when `path` is none.
    static func linkTarget(_ path: String) -> String? {
        var bytes = [CChar](repeating: 0, count: Int(PATH_MAX))
        // SAFETY: see above; the call gets the array and its size, and the number it returns says how much of it is filled.
        let count = unsafe readlink(path, &bytes, bytes.count)
        return count > 0 ? String(decoding: bytes.prefix(count).map { UInt8(bitPattern: $0) }, as: UTF8.self) : nil
    }

    // MARK: Descriptors, continued

    static func setCloseOnExec(_ descriptor: Int32, _ isSet: Bool) {
        let flags = fcntl(descriptor, F_GETFD)
        guard flags >= 0 else { return }
        _ = fcntl(descriptor, F_SETFD, isSet ? flags | FD_CLOEXEC : flags & ~FD_CLOEXEC)
    }

    /// Another descriptor of the same file, for somebody who will close it; not inherited by children.
    static func duplicate(_ descriptor: Int32) throws(ToolError) -> Int32 {
        let copy = fcntl(descriptor, F_DUPFD_CLOEXEC, 3)
        guard copy >= 0 else { throw .runtime("cannot duplicate descriptor \(descriptor): \(text(of: errno))") }
        return copy
    }

    static func isOpen(_ descriptor: Int32) -> Bool { fcntl(descriptor, F_GETFD) >= 0 }

    /// Whether `descriptor` is a socket, and if so whether it listens.
    static func socketKind(_ descriptor: Int32) -> (isSocket: Bool, isListening: Bool) {
        var value: Int32 = 0
        var length = socklen_t(MemoryLayout<Int32>.size)
        // SAFETY: both pointers are valid during the call and `length` is the size of `value`.
        let isSocket = unsafe getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &value, &length) == 0
        // SAFETY: as above.
        let isListening = unsafe getsockopt(descriptor, SOL_SOCKET, SO_ACCEPTCONN, &value, &length) == 0 && value != 0
        return (isSocket, isListening)
    }

    /// Standard input, and unless `keepsError` also output and error, become /dev/null.
    static func detachStandardStreams(keepsError: Bool) {
        let null = open("/dev/null", O_RDWR)
        guard null >= 0 else { return }
        for descriptor in 0...(keepsError ? 1 : 2) as ClosedRange<Int32> { dup2(null, descriptor) }
        if null > 2 { close(null) }
    }

    // MARK: Sockets

    /// Calls `body` with the address of a Unix socket; a leading NUL in `path` makes it abstract.
    ///
    /// - Precondition: `path` has at most `socketPathLimit` bytes.
    static func withAddress<R>(ofUnixSocket path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> R) -> R {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        precondition(bytes.count <= socketPathLimit, "the name of a Unix socket was not checked")
        let header = MemoryLayout<sockaddr_un>.size - MemoryLayout.size(ofValue: address.sun_path)
        // SAFETY: at most `socketPathLimit` bytes, which leaves room for a NUL inside `sun_path`; the rest of the structure is zero.
        unsafe withUnsafeMutableBytes(of: &address) { unsafe UnsafeMutableRawBufferPointer(rebasing: $0[header...]).copyBytes(from: bytes) }
        // An abstract name ends where the length says, another at its NUL.
        let length = socklen_t(header + bytes.count + (bytes.first == 0 ? 0 : 1))
        // SAFETY: every socket address may be read as a `sockaddr`; the pointer is used during the call only.
        return unsafe withUnsafePointer(to: &address) {
            unsafe $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { unsafe body($0, length) }
        }
    }

    /// Whether IPv6 connections to this host itself are possible.
    static var hasLoopbackIPv6: Bool {
        let descriptor = socket(AF_INET6, streamType, 0)
        guard descriptor >= 0 else { return false }
        defer { close(descriptor) }
        var address = sockaddr_in6()
        address.sin6_family = sa_family_t(AF_INET6)
        address.sin6_addr = in6addr_loopback
        // SAFETY: every socket address may be read as a `sockaddr`; the pointer is used during the call only.
        return unsafe withUnsafePointer(to: &address) {
            unsafe $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in6>.size)) == 0
            }
        }
    }

    #if canImport(Glibc)
    static let streamType = Int32(SOCK_STREAM.rawValue)
    static let datagramType = Int32(SOCK_DGRAM.rawValue)
    #else
    static let streamType = SOCK_STREAM
    static let datagramType = SOCK_DGRAM
    #endif
}

private func systemOpen(_ path: UnsafePointer<CChar>, _ flags: Int32, _ mode: mode_t) -> Int32 {
    // SAFETY: the caller passes a NUL-terminated string.
    unsafe open(path, flags, mode)
}

// Inside `HostProcess` the names of its own functions hide these.
private func systemWrite(_ descriptor: Int32, _ bytes: UnsafeRawPointer?, _ count: Int) -> Int {
    // SAFETY: the callers pass the bounds of a buffer they hold.
    unsafe write(descriptor, bytes, count)
}

private func systemRead(_ descriptor: Int32, _ bytes: UnsafeMutableRawPointer?, _ count: Int) -> Int {
    // SAFETY: the callers pass the bounds of a buffer they hold.
    unsafe read(descriptor, bytes, count)
}
