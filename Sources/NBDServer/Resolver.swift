import NBDProtocol
import NIOCore
import NIOPosix

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Names of hosts into all their addresses: a server listens on each, and NIO's public call gives only the first.
enum Resolver {
    /// - Returns: the addresses to bind, in the order of the system's resolver, each once. An empty host means every address.
    static func addresses(host: String, port: Int) async throws -> [SocketAddress] {
        if let address = try? SocketAddress(ipAddress: host, port: port) { return [address] }
        return try await NIOThreadPool.singleton.runIfActive { try lookUp(host: host, port: port) }
    }

    private static func lookUp(host: String, port: Int) throws -> [SocketAddress] {
        // SAFETY: plain values; the pointers in it stay nil.
        var hints = unsafe addrinfo()
        unsafe hints.ai_flags = AI_PASSIVE
        unsafe hints.ai_family = AF_UNSPEC
        #if canImport(Glibc)
        unsafe hints.ai_socktype = CInt(SOCK_STREAM.rawValue)
        #else
        unsafe hints.ai_socktype = SOCK_STREAM
        #endif
        // SAFETY: the list belongs to us until it is freed below; each address is copied out while it is alive, by its own length's type.
        var list: UnsafeMutablePointer<addrinfo>?
        let code = unsafe getaddrinfo(host.isEmpty ? nil : host, String(port), &hints, &list)
        guard code == 0 else {
            throw ServerError(.cannotListen, "cannot find host '\(host.sanitized())': \(unsafe String(cString: gai_strerror(code)))")
        }
        defer { unsafe freeaddrinfo(list) }
        var addresses: [SocketAddress] = []
        var next = unsafe list
        while let entry = unsafe next {
            unsafe next = entry.pointee.ai_next
            guard let raw = unsafe entry.pointee.ai_addr else { continue }
            let address: SocketAddress? =
                switch unsafe entry.pointee.ai_family {
                case AF_INET:
                    unsafe raw.withMemoryRebound(to: sockaddr_in.self, capacity: 1) { unsafe SocketAddress($0.pointee) }
                case AF_INET6:
                    unsafe raw.withMemoryRebound(to: sockaddr_in6.self, capacity: 1) { unsafe SocketAddress($0.pointee) }
                default:
                    nil
                }
            if let address, !addresses.contains(address) { addresses.append(address) }
        }
        return addresses
    }
}

/// What the system calls an error number.
func systemMessage(_ code: CInt) -> String {
    // SAFETY: strerror returns a string of static or thread storage, copied at once.
    unsafe String(cString: strerror(code))
}

/// Takes the name of a socket out of the file system.
func removeSocket(_ path: String) {
    // SAFETY: the string is lent for the call.
    _ = unsafe unlink(path)
}
