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

/// Opens listeners and hands their connections to the server. All listening channels share one loop (see `ConnectionCount`).
struct Acceptor {
    let server: NBDServer
    let loop: any EventLoop
    let group: any EventLoopGroup
    private let count: NIOLoopBoundBox<ConnectionCount>

    init(server: NBDServer, loop: any EventLoop, group: any EventLoopGroup, connectionLimit: Int) {
        self.server = server
        self.loop = loop
        self.group = group
        count = NIOLoopBoundBox.makeBoxSendingValue(ConnectionCount(limit: connectionLimit), eventLoop: loop)
    }

    /// - Parameter freePort: what port 0 got on another address; it is tried first, so that a server has one port if possible.
    func open(_ listener: Listener, preferringPort freePort: Int? = nil) async throws(ServerError) -> [any Channel] {
        do {
            switch listener.address {
            case .tcp(let host, port: 0):
                if let freePort, let channels = try? await openTCP(listener, host: host, port: freePort) { return channels }
                return try await openTCP(listener, host: host, port: 0)
            case .tcp(let host, let port):
                return try await openTCP(listener, host: host, port: port)
            case .unix(let path):
                return [try await bootstrap(listener).bind(to: SocketAddress(unixDomainSocketPath: path)).get()]
            case .inherited(let descriptor):
                return [try await bootstrap(listener).withBoundSocket(descriptor).get()]
            case .connected(let descriptor):
                try await connect(listener, descriptor)
                return []
            }
        } catch let error as ServerError {
            throw error
        } catch {
            throw ServerError(.cannotListen, "cannot listen on \(listener.address.text): \(reason(error))")
        }
    }

    /// Each address of the host; with port 0, the port that the first one got.
    private func openTCP(_ listener: Listener, host: String, port: Int) async throws -> [any Channel] {
        guard (0...65535).contains(port) else {
            throw ServerError(.cannotListen, "cannot listen on \(listener.address.text): the port is not between 0 and 65535")
        }
        var channels: [any Channel] = []
        var port = port
        for var address in try await Resolver.addresses(host: host, port: port) {
            address.port = port
            do {
                let channel = try await bootstrap(listener).bind(to: address).get()
                channels.append(channel)
                port = channel.localAddress?.port ?? port
            } catch {
                // A name such as "localhost" may have an IPv6 address on a machine without IPv6.
                if let error = error as? IOError, error.errnoCode == EADDRNOTAVAIL || error.errnoCode == EAFNOSUPPORT, !channels.isEmpty {
                    continue
                }
                for channel in channels { try? await channel.close() }
                throw error
            }
        }
        return channels
    }

    private func bootstrap(_ listener: Listener) -> ServerBootstrap {
        let isTCP = if case .unix = listener.address { false } else { true }
        let server = server
        return ServerBootstrap(group: loop, childGroup: group)
            .serverChannelOption(.backlog, value: 4096)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: isTCP ? 1 : 0)
            .serverChannelOption(.maxMessagesPerRead, value: 1)
            .serverChannelInitializer { [count] channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(AcceptGate(count.value) { server.cannotAccept($0) })
                }
            }
            .childChannelOption(.autoRead, value: false)
            .childChannelOption(.allowRemoteHalfClosure, value: true)
            .childChannelOption(.maxMessagesPerRead, value: 4)
            .childChannelOption(.recvAllocator, value: AdaptiveRecvByteBufferAllocator(minimum: 4096, initial: 65536, maximum: 1 << 20))
            .childChannelOption(.writeBufferWaterMark, value: .init(low: 1 << 20, high: 64 << 20))
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    server.watchPeer(channel)
                    try server.adopt(channel, listener: listener)
                }
            }
    }

    /// A connected socket becomes a connection at once.
    private func connect(_ listener: Listener, _ descriptor: CInt) async throws {
        let server = server
        _ = try await ClientBootstrap(group: group)
            .channelOption(.autoRead, value: false)
            .channelOption(.allowRemoteHalfClosure, value: true)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture { try server.adopt(channel, listener: listener) }
            }
            .withConnectedSocket(descriptor).get()
    }

    private func reason(_ error: any Error) -> String {
        guard let error = error as? IOError else { return "\(error)" }
        return systemMessage(error.errnoCode)
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
}
