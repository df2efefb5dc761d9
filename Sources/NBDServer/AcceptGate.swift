import NIOCore

/// Counts the connections of all listeners, which share one event loop. At the limit listeners stop accepting until a connection ends, so
/// that new clients wait in the backlog (S-SRV-04).
final class ConnectionCount {
    private var count = 0
    /// 0: none.
    private let limit: Int
    fileprivate var gates: [AcceptGate] = []

    init(limit: Int) { self.limit = limit }

    fileprivate var isFull: Bool { limit > 0 && count >= limit }

    fileprivate func enter() { count += 1 }

    fileprivate func leave() {
        count -= 1
        for gate in gates { gate.admitHeld() }
        for gate in gates where !isFull { gate.resumeReading() }
    }
}

/// Sits on a listening channel and lets connections in while there are places.
final class AcceptGate: ChannelDuplexHandler {
    typealias InboundIn = any Channel
    typealias InboundOut = any Channel
    typealias OutboundIn = Never

    private let count: ConnectionCount
    private let cannotAccept: (any Error) -> Void
    private var context: ChannelHandlerContext?
    /// Accepted, but without a place: another listener was faster.
    private var held: [any Channel] = []
    private var isReadPending = false

    /// - Parameter cannotAccept: told each time the system refuses.
    init(_ count: ConnectionCount, cannotAccept: @escaping (any Error) -> Void) {
        self.count = count
        self.cannotAccept = cannotAccept
    }

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        count.gates.append(self)
    }

    func handlerRemoved(context: ChannelHandlerContext) {
        for channel in held { channel.close(promise: nil) }
        held = []
        self.context = nil
        count.gates.removeAll { $0 === self }
    }

    func read(context: ChannelHandlerContext) {
        if count.isFull {
            isReadPending = true
        } else {
            context.read()
        }
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        held.append(unwrapInboundIn(data))
        admitHeld()
    }

    /// A listener that cannot accept, for want of descriptors or memory, tries again after a while. NIO's `AcceptBackoffHandler` does not do:
    /// after an error NIO's channel stays registered for reading, and tries again at once and for ever.
    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        cannotAccept(error)
        guard error is IOError, let options = context.channel.syncOptions else { return }
        try? options.setOption(.autoRead, value: false)
        let bound = NIOLoopBound(options, eventLoop: context.eventLoop)
        context.eventLoop.scheduleTask(in: .seconds(1)) { try bound.value.setOption(.autoRead, value: true) }
    }

    fileprivate func admitHeld() {
        while let context, !count.isFull, !held.isEmpty {
            let channel = held.removeFirst()
            count.enter()
            let count = NIOLoopBound(count, eventLoop: context.eventLoop)
            channel.closeFuture.hop(to: context.eventLoop).whenComplete { _ in count.value.leave() }
            context.fireChannelRead(wrapInboundOut(channel))
        }
    }

    fileprivate func resumeReading() {
        guard isReadPending, let context else { return }
        isReadPending = false
        context.read()
    }
}
