import NBDProtocol
import NIOCore
import NIOPosix

extension NBDServer {
    /// Lets clients in from here on. Those of `.connected` are in when it returns, or gone already.
    ///
    /// - Throws: `.cannotListen`, for want of descriptors; then nothing is left open.
    func beginAccepting(_ opened: [(listener: Listener, sockets: [ListeningSocket])]) async throws(ServerError) {
        let doors = opened.flatMap { (listener, sockets) in sockets.map { Acceptor.Door(listener: listener, socket: $0) } }
        if !doors.isEmpty {
            let acceptor: Acceptor
            do {
                let host = Acceptor.Host(
                    hasPlace: { [self] in hasPlace }, receive: { [self] in _ = receive($0, listener: $1) },
                    cannotAccept: { [self] in cannotAccept($0) })
                acceptor = try Acceptor(doors, host: host)
            } catch {
                for door in doors { door.socket.close() }
                for case .connected(let descriptor) in opened.map(\.listener.address) { ListeningSocket.close(descriptor) }
                throw ServerError(.cannotListen, "cannot wait for clients: \(systemMessage(error.errnoCode))")
            }
            if use(acceptor) {
                // Who left before we used it has not told it.
                acceptor.wake()
            } else {
                await acceptor.close()
            }
        }
        for (listener, _) in opened {
            guard case .connected(let descriptor) = listener.address else { continue }
            // A client that cannot be served is no reason not to start: it is as good as gone.
            try? await receive(descriptor, listener: listener).get()
        }
    }

    /// Makes a connection of a connected socket, which belongs to its channel from then on, on the next event loop of the group.
    private func receive(_ descriptor: CInt, listener: Listener) -> EventLoopFuture<Void> {
        let id = arrived()
        // TCP_NODELAY is NIO's default (P-GEN-02).
        return ClientBootstrap(group: group)
            .channelOption(.autoRead, value: false)
            .channelOption(.allowRemoteHalfClosure, value: true)
            .channelOption(.maxMessagesPerRead, value: 4)
            .channelOption(.recvAllocator, value: AdaptiveRecvByteBufferAllocator(minimum: 4096, initial: 65536, maximum: 1 << 20))
            .channelOption(.writeBufferWaterMark, value: .init(low: 1 << 20, high: 64 << 20))
            .channelInitializer { [self] channel in
                channel.eventLoop.makeCompletedFuture {
                    watchPeer(channel)
                    try adopt(channel, id: id, descriptor: descriptor, listener: listener)
                }
            }
            .withConnectedSocket(descriptor)
            .map { _ in }
            .flatMapErrorThrowing { [self] error in
                // NIO closes the socket, except when it could not make a channel of it; Darwin alone lets that fail (see the error).
                if error is NIOFcntlFailedError { ListeningSocket.close(descriptor) }
                ended(id)
                // Those of our own making are no news.
                if !(error is CancellationError), !(error is ProtocolViolation) { cannotAccept(error) }
                throw error
            }
    }
}
