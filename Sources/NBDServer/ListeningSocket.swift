import CSockets
import HostIO
import NBDProtocol
import NIOCore

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// A socket that clients connect to; it never waits. Whoever has opened it closes it.
struct ListeningSocket: Sendable {
    /// Clients that may wait to be let in; the system takes less if it wants (S-SRV-02).
    static let backlog: CInt = 4096

    /// Longest name of a Unix socket in bytes, its terminating NUL left out.
    #if canImport(Darwin)
    static let pathLimit = 103
    #else
    static let pathLimit = 107
    #endif

    let descriptor: CInt
    /// nil: of a family that we do not know.
    let address: SocketAddress?
    private var file: File?
    /// Of clients on other hosts. nil: clients have whatever the system gives them; somebody else's socket is not changed.
    private var pace: SocketPace?

    /// The socket's name in the file system, which is ours to take away.
    private struct File: Equatable {
        let path: String
        let device: dev_t
        let number: ino_t

        /// nil when there is nothing of that name.
        init?(_ path: String) {
            var status = stat()
            // SAFETY: the string and `status` are lent for the call.
            guard unsafe lstat(path, &status) == 0 else { return nil }
            (self.path, device, number) = (path, status.st_dev, status.st_ino)
        }
    }

    private init(descriptor: CInt) {
        self.descriptor = descriptor
        address = Self.localAddress(of: descriptor)
    }

    // MARK: Opening

    /// - Parameter isIPv6Only: an IPv6 socket on all addresses leaves IPv4 to another socket; otherwise it takes both.
    static func tcp(_ address: SocketAddress, isIPv6Only: Bool) throws(IOError) -> ListeningSocket {
        let family = if case .v6 = address { AF_INET6 } else { AF_INET }
        var pace: SocketPace?
        var socket = try bound(family: family) { descriptor throws(IOError) in
            pace = SocketPace(takenFrom: descriptor)
            try set(SOL_SOCKET, SO_REUSEADDR, 1, of: descriptor)
            if family == AF_INET6 { try set(CInt(IPPROTO_IPV6), IPV6_V6ONLY, isIPv6Only ? 1 : 0, of: descriptor) }
            // SAFETY: the address is lent for the call.
            return unsafe address.withSockAddr { unsafe bind(descriptor, $0, socklen_t($1)) }
        }
        socket.pace = pace
        return socket
    }

    /// - Parameter path: 1…`pathLimit` bytes without NUL, or a NUL in front of an abstract name (Linux). What is there already is an error.
    static func unix(_ path: String) throws(IOError) -> ListeningSocket {
        let bytes = Array(path.utf8)
        var socket = try bound(family: AF_UNIX) { descriptor throws(IOError) in
            var address = sockaddr_un()
            address.sun_family = sa_family_t(AF_UNIX)
            let header = MemoryLayout<sockaddr_un>.size - MemoryLayout.size(ofValue: address.sun_path)
            guard bytes.count <= pathLimit else { throw IOError(errnoCode: ENAMETOOLONG, reason: "bind") }
            // SAFETY: at most `pathLimit` bytes, which leaves room for a NUL inside `sun_path`; the rest of the structure is zero.
            unsafe withUnsafeMutableBytes(of: &address) {
                unsafe UnsafeMutableRawBufferPointer(rebasing: $0[header...]).copyBytes(from: bytes)
            }
            // An abstract name ends where the length says, another at its NUL.
            let length = socklen_t(header + bytes.count + (bytes.first == 0 ? 0 : 1))
            // SAFETY: every socket address may be read as a `sockaddr`; the pointer is used during the call only.
            return unsafe withUnsafePointer(to: &address) {
                unsafe $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { unsafe bind(descriptor, $0, length) }
            }
        }
        if bytes.first != 0 { socket.file = File(path) }
        return socket
    }

    /// Takes over a bound socket; it is the caller's to close when this throws.
    static func inherited(_ descriptor: CInt) throws(IOError) -> ListeningSocket {
        try check(csockets_prepare(descriptor), "fcntl")
        guard listen(descriptor, backlog) == 0 else { throw IOError(errnoCode: errno, reason: "listen") }
        return ListeningSocket(descriptor: descriptor)
    }

    /// - Parameter bind: gives 0, or -1 and `errno`.
    private static func bound(family: CInt, _ bind: (CInt) throws(IOError) -> CInt) throws(IOError) -> ListeningSocket {
        let descriptor = try check(csockets_open(family), "socket")
        do throws(IOError) {
            guard try bind(descriptor) == 0 else { throw IOError(errnoCode: errno, reason: "bind") }
            guard listen(descriptor, backlog) == 0 else { throw IOError(errnoCode: errno, reason: "listen") }
        } catch {
            Self.close(descriptor)
            throw error
        }
        return ListeningSocket(descriptor: descriptor)
    }

    // MARK: Clients

    enum Answer {
        /// A connected socket that never waits; whoever gets it closes it.
        case client(CInt)
        /// Nobody is there, or no more.
        case nobody
        /// The system lacks descriptors, memory or something else that will not be there at once.
        case refused(IOError)
    }

    func accept() -> Answer {
        let result = csockets_accept(descriptor)
        guard result < 0 else {
            pace?.giveBack(to: result)
            return .client(result)
        }
        switch -result {
        // Errors of a client that was waiting, and is taken off the queue with them: see accept(2).
        case EAGAIN, EINTR, ECONNABORTED, EPROTO, ENOPROTOOPT, ENETDOWN, ENETUNREACH, EHOSTDOWN, EHOSTUNREACH, ETIMEDOUT: return .nobody
        case let code: return .refused(IOError(errnoCode: code, reason: "accept"))
        }
    }

    // MARK: The end

    /// Clients that wait are turned away. A name in the file system goes, unless somebody has put something else there.
    func close() {
        Self.close(descriptor)
        if let file, File(file.path) == file { removeSocket(file.path) }
    }

    static func close(_ descriptor: CInt) {
        #if canImport(Darwin)
        _ = Darwin.close(descriptor)
        #elseif canImport(Musl)
        _ = Musl.close(descriptor)
        #else
        _ = Glibc.close(descriptor)
        #endif
    }

    // MARK: Details

    /// Makes a descriptor of somebody else's fit for us.
    /// - Throws: when it is no socket.
    static func prepare(connected descriptor: CInt) throws(IOError) {
        var kind: CInt = 0
        var length = socklen_t(MemoryLayout<CInt>.size)
        // SAFETY: both pointers are valid during the call and `length` is the size of `kind`.
        guard unsafe getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &kind, &length) == 0 else {
            throw IOError(errnoCode: errno, reason: "getsockopt")
        }
        try check(csockets_prepare(descriptor), "fcntl")
    }

    private static func set(_ level: CInt, _ option: CInt, _ value: CInt, of descriptor: CInt) throws(IOError) {
        var value = value
        // SAFETY: the pointer is valid during the call, and the length is that of its value.
        guard unsafe setsockopt(descriptor, level, option, &value, socklen_t(MemoryLayout<CInt>.size)) == 0 else {
            throw IOError(errnoCode: errno, reason: "setsockopt")
        }
    }

    private static func localAddress(of descriptor: CInt) -> SocketAddress? {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        // SAFETY: `storage` has room for every address, and `length` says how much; it is read as the type that its family names.
        return unsafe withUnsafeMutablePointer(to: &storage) { storage in
            let result = unsafe storage.withMemoryRebound(to: sockaddr.self, capacity: 1) { unsafe getsockname(descriptor, $0, &length) }
            guard result == 0 else { return nil }
            let bytes = UnsafeRawPointer(storage)
            return switch CInt(unsafe storage.pointee.ss_family) {
            case AF_INET: unsafe SocketAddress(bytes.load(as: sockaddr_in.self))
            case AF_INET6: unsafe SocketAddress(bytes.load(as: sockaddr_in6.self))
            case AF_UNIX: unsafe SocketAddress(bytes.load(as: sockaddr_un.self))
            default: nil
            }
        }
    }

    @discardableResult
    private static func check(_ result: CInt, _ call: String) throws(IOError) -> CInt {
        guard result >= 0 else { throw IOError(errnoCode: -result, reason: call) }
        return result
    }
}
