import CHostIO
import SystemPackage

/// A promise of this process to itself, which the kernel keeps: after `confineProcess` it opens nothing but what was allowed before, and binds
/// or connects no TCP socket. What is open already stays as it is, and so do processes started before. Linux with Landlock only.
///
///     let confinement = try Confinement()
///     try confinement.allow(.readFile, beneath: "/etc/nbd/certificates")
///     try confinement.confineProcess()
public struct Confinement: ~Copyable {
    /// What may be done below a path.
    public struct Access: OptionSet, Sendable {
        public let rawValue: UInt32
        public init(rawValue: UInt32) { self.rawValue = rawValue }

        public static let writeFile = Access(rawValue: UInt32(CHOSTIO_MAY_WRITE_FILE))
        public static let readFile = Access(rawValue: UInt32(CHOSTIO_MAY_READ_FILE))
        public static let readDirectory = Access(rawValue: UInt32(CHOSTIO_MAY_READ_DIRECTORY))
        public static let removeDirectory = Access(rawValue: UInt32(CHOSTIO_MAY_REMOVE_DIRECTORY))
        public static let removeFile = Access(rawValue: UInt32(CHOSTIO_MAY_REMOVE_FILE))
    }

    private let rules: FileDescriptor

    /// Which version of Landlock the kernel has, 1 and up; nil: none.
    public static var version: Int? {
        let version = chostio_landlock_version()
        return version > 0 ? Int(version) : nil
    }

    /// Rules that allow nothing yet.
    ///
    /// - Parameter keepsSignals: other processes may still be signalled, and abstract sockets of others be reached; from version 6 on they
    ///   cannot otherwise.
    /// - Throws: ENOSYS or EOPNOTSUPP where there is no Landlock.
    public init(keepsSignals: Bool) throws(HostError) {
        rules = FileDescriptor(rawValue: try Self.check(chostio_landlock_begin(keepsSignals), "make rules of Landlock"))
    }

    deinit { try? rules.close() }

    /// - Throws: when nothing is at `path`, or an access is for directories only and this is none.
    public func allow(_ access: Access, beneath path: String) throws(HostError) {
        // SAFETY: the string is lent for the call.
        let result = unsafe chostio_landlock_allow(rules.rawValue, path, access.rawValue)
        try Self.check(result, "allow access", path)
    }

    /// Confines the calling thread alone.
    public func confineThread() throws(HostError) { try Self.check(chostio_landlock_confine_thread(rules.rawValue), "confine a thread") }

    /// Confines every thread there is, and hence all that will be: for good. Files of /proc can still be read, as libdispatch ends the process
    /// otherwise; not what belongs to other processes alone (environment, memory), nor the kernel's memory.
    ///
    /// - Returns: how many threads there were.
    /// - Throws: then some may be confined and others not: the process should end.
    @discardableResult
    public func confineProcess() throws(HostError) -> Int {
        Int(try Self.check(chostio_landlock_confine_process(rules.rawValue), "confine the process"))
    }

    /// Makes every thread of the process this user and group, with no other group. For after setgroups, setgid and setuid, which leave a thread
    /// out that has ended itself: on Linux, the main thread of a Swift program with an asynchronous `main` is one.
    ///
    /// - Throws: then threads differ: the process should end.
    public static func become(user: UInt32, group: UInt32) throws(HostError) { try check(chostio_become(user, group), "change user in all threads") }

    @discardableResult
    private static func check(_ result: CInt, _ operation: String, _ path: String? = nil) throws(HostError) -> CInt {
        guard result >= 0 else { throw HostError(Errno(rawValue: -result), operation, path: path) }
        return result
    }
}
