import NBDProtocol
import NIOCore

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

extension ListeningSocket {
    /// Opens all listeners, and makes the descriptors of `.connected` ones fit for us.
    ///
    /// - Returns: the sockets of each listener: none for a connected one, several for a name with several addresses.
    /// - Throws: `.cannotListen`, naming the address and the reason; then nothing is left open, no descriptor of a listener either.
    static func open(_ listeners: [Listener]) async throws(ServerError) -> [(listener: Listener, sockets: [ListeningSocket])] {
        var opened: [(listener: Listener, sockets: [ListeningSocket])] = []
        do throws(ServerError) {
            var freePort: Int?
            for listener in listeners {
                let sockets = try await open(listener, preferringPort: freePort)
                opened.append((listener, sockets))
                if case .tcp(_, port: 0) = listener.address { freePort = freePort ?? sockets.first?.address?.port }
            }
            return opened
        } catch {
            for socket in opened.flatMap(\.sockets) { socket.close() }
            for listener in listeners.dropFirst(opened.count) { if let descriptor = listener.address.descriptor { close(descriptor) } }
            for case .connected(let descriptor) in opened.map(\.listener.address) { close(descriptor) }
            throw error
        }
    }

    /// - Parameter freePort: what port 0 got on another address; it is tried first, so that a server has one port if possible.
    private static func open(_ listener: Listener, preferringPort freePort: Int?) async throws(ServerError) -> [ListeningSocket] {
        do {
            switch listener.address {
            case .tcp(let host, port: 0):
                if let freePort, let sockets = try? await openTCP(host: host, port: freePort) { return sockets }
                return try await openTCP(host: host, port: 0)
            case .tcp(let host, let port):
                return try await openTCP(host: host, port: port)
            case .unix(let path):
                return [try openUnix(path)]
            case .inherited(let descriptor):
                return [try inherited(descriptor)]
            case .connected(let descriptor):
                try prepare(connected: descriptor)
                return []
            }
        } catch {
            let reason = (error as? IOError).map { systemMessage($0.errnoCode) } ?? "\(error)"
            throw ServerError(.cannotListen, "cannot listen on \(listener.address.text): \(reason)")
        }
    }

    private static func openUnix(_ path: String) throws -> ListeningSocket {
        guard !path.isEmpty else { throw Refusal("the path is empty") }
        guard path.utf8.count <= pathLimit else { throw Refusal("the path is longer than \(pathLimit) bytes") }
        guard !path.utf8.dropFirst().contains(0) else { throw Refusal("the path has a NUL in it") }
        #if !os(Linux)
        guard path.utf8.first != 0 else { throw Refusal("there are no abstract names on this system") }
        #endif
        return try unix(path)
    }

    /// Each address of the host; with port 0, the port that the first one got.
    private static func openTCP(host: String, port: Int) async throws -> [ListeningSocket] {
        guard (0...65535).contains(port) else { throw Refusal("the port is not between 0 and 65535") }
        var sockets: [ListeningSocket] = []
        var port = port
        let addresses = try await Resolver.addresses(host: host, port: port)
        for var address in addresses {
            address.port = port
            do {
                // One of several: the host's IPv4 addresses have sockets of their own.
                let socket = try tcp(address, isIPv6Only: addresses.count > 1)
                sockets.append(socket)
                port = socket.address?.port ?? port
            } catch {
                // A name such as "localhost" may have an IPv6 address on a machine without IPv6.
                if error.errnoCode == EADDRNOTAVAIL || error.errnoCode == EAFNOSUPPORT, !sockets.isEmpty { continue }
                for socket in sockets { socket.close() }
                throw error
            }
        }
        return sockets
    }

    /// Why an address is refused without asking the system.
    private struct Refusal: Error, CustomStringConvertible {
        let description: String
        init(_ description: String) { self.description = description }
    }
}

extension Listener.Address {
    /// As a person would write it.
    var text: String {
        switch self {
        case .tcp(let host, let port): host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
        case .unix(let path): path.sanitized(limit: 200)
        case .inherited(let descriptor), .connected(let descriptor): "descriptor \(descriptor)"
        }
    }

    /// The one that somebody has handed over.
    fileprivate var descriptor: CInt? {
        switch self {
        case .inherited(let descriptor), .connected(let descriptor): descriptor
        case .tcp, .unix: nil
        }
    }
}
