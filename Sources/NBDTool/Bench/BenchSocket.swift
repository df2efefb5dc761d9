import HostIO
import NBDProtocol

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// A connected socket; closed when nobody holds it any more.
final class BenchSocket: Sendable {
    let descriptor: Int32

    init(_ descriptor: Int32) { self.descriptor = descriptor }
    deinit { close(descriptor) }

    /// How long a call may wait, in milliseconds. 0: for ever.
    func setTimeLimit(milliseconds: Int) {
        var limit = timeval()
        limit.tv_sec = .init(milliseconds / 1000)
        limit.tv_usec = .init(milliseconds % 1000 * 1000)
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            // SAFETY: the pointer is valid during the call, with the size of what it points to.
            _ = unsafe setsockopt(descriptor, SOL_SOCKET, option, &limit, socklen_t(MemoryLayout<timeval>.size))
        }
    }

    /// Connects.
    ///
    /// - Throws: `.runtime` saying where and why not.
    static func connect(_ address: NBDURI.Address, timeLimitMilliseconds: Int) throws(ToolError) -> BenchSocket {
        switch address {
        case .unix(let path):
            guard path.utf8.count <= HostProcess.socketPathLimit else { throw .runtime("the path of the socket is too long") }
            let socket = try make(AF_UNIX, timeLimitMilliseconds)
            // SAFETY: the address is valid during the call.
            let result = unsafe HostProcess.withAddress(ofUnixSocket: path) { unsafe systemConnect(socket.descriptor, $0, $1) }
            guard result == 0 else { throw refusal(path.first == "\0" ? "@\(path.dropFirst())" : path, errno) }
            return socket
        case .tcp(let host, let port):
            return try connect(host: host, port: port, timeLimitMilliseconds)
        case .vsock:
            throw .runtime("vsock is not built in yet")
        }
    }

    private static func connect(host: String, port: UInt16, _ limit: Int) throws(ToolError) -> BenchSocket {
        // SAFETY: plain values; the pointers in it stay nil.
        var hints = unsafe addrinfo()
        unsafe hints.ai_family = AF_UNSPEC
        unsafe hints.ai_socktype = HostProcess.streamType
        // SAFETY: the list belongs to us until it is freed below, and nothing of it is kept.
        var list: UnsafeMutablePointer<addrinfo>?
        let code = unsafe getaddrinfo(host, String(port), &hints, &list)
        guard code == 0 else { throw .runtime("cannot find host '\(host.sanitized())': \(unsafe String(cString: gai_strerror(code)))") }
        defer { unsafe freeaddrinfo(list) }
        var next = unsafe list
        var reason = ECONNREFUSED
        while let entry = unsafe next {
            unsafe next = entry.pointee.ai_next
            let socket = try make(unsafe entry.pointee.ai_family, limit)
            // A server on this host is to be the limit, not our own pace.
            let pace = SocketPace(takenFrom: socket.descriptor)
            if unsafe systemConnect(socket.descriptor, entry.pointee.ai_addr, entry.pointee.ai_addrlen) == 0 {
                var yes: Int32 = 1
                // P-GEN-02.
                unsafe setsockopt(socket.descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &yes, socklen_t(MemoryLayout<Int32>.size))
                pace?.giveBack(to: socket.descriptor)
                return socket
            }
            reason = errno
        }
        throw refusal("\(host):\(port)", reason)
    }

    private static func make(_ family: Int32, _ limit: Int) throws(ToolError) -> BenchSocket {
        let descriptor = socket(family, HostProcess.streamType, 0)
        guard descriptor >= 0 else { throw .runtime("cannot make a socket: \(HostProcess.text(of: errno))") }
        HostProcess.setCloseOnExec(descriptor, true)
        let socket = BenchSocket(descriptor)
        socket.setTimeLimit(milliseconds: limit)
        return socket
    }

    private static func refusal(_ place: String, _ error: Int32) -> ToolError {
        // What a limit of time on connect(2) says.
        let isLate = error == EINPROGRESS || error == EAGAIN
        return .runtime("cannot connect to \(place.sanitized(limit: 200)): \(isLate ? "no answer" : HostProcess.text(of: error))")
    }
}

// Inside `BenchSocket` its own function hides this.
private func systemConnect(_ descriptor: Int32, _ address: UnsafePointer<sockaddr>?, _ length: socklen_t) -> Int32 {
    // SAFETY: the callers pass an address with its own length.
    unsafe connect(descriptor, address, length)
}
