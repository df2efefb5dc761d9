public import NBDProtocol
public import NBDTLS
public import NIOCore
import NIOPosix
import SystemPackage

/// A connection to an NBD server.
///
/// `connect` leads straight to an export. `open` stops where options may be sent (list exports, ask for one, choose contexts); `go` leads on
/// from there. Requests may be sent from many tasks at once; each returns when its own reply is complete. A client that is let go closes its
/// connection; `disconnect()` does it as the protocol wishes.
///
/// A request on its way cannot be taken back: cancelling the task that waits does not end the wait.
public final class NBDClient: Sendable {
    public struct Options: Sendable {
        public var handshake = ClientHandshake.Configuration()
        /// Names of metadata contexts that `connect` and `go` select.
        public var contexts: [String] = []
        /// What we prove ourselves with, and whom we believe. Set: nothing is said in clear, whatever the URI. nil: a URI of `nbds` is served
        /// with the authorities that the system trusts.
        public var tls: TLSClientCredentials?
        /// The name that the server's certificate must bear. nil: what the URI says, else the host that is connected to; on a Unix socket, any.
        public var tlsHostname: String?
        /// For connecting with the greeting, for each option, and for the server's end of `disconnect()`.
        public var timeLimit: Duration = .seconds(10)
        /// For each request; nil: none. When it is over, the connection is closed: the reply might still come.
        public var requestTimeLimit: Duration?
        /// The longest READ whose data we are willing to hold, in bytes.
        public var readByteCountLimit: UInt64 = 64 << 20
        public var eventLoopGroup: any EventLoopGroup = MultiThreadedEventLoopGroup.singleton
        public init() {}
    }

    public let options: Options
    let channel: any Channel
    let connection: NIOLoopBound<ClientConnection>

    private init(_ options: Options, _ channel: any Channel, _ connection: NIOLoopBound<ClientConnection>) {
        self.options = options
        self.channel = channel
        self.connection = connection
    }

    deinit { channel.close(promise: nil) }

    // MARK: Coming and going

    /// Connects to the export that `uri` names, ready for requests.
    ///
    /// - Throws: `NBDURIError`, `NBDClientError`, `RefusedOption`.
    public static func connect(_ uri: String, options: Options = Options()) async throws -> NBDClient {
        try await connect(NBDURI(parsing: uri), options: options)
    }

    /// Connects to the export that `uri` names, ready for requests.
    ///
    /// - Throws: `NBDClientError`, `RefusedOption`.
    public static func connect(_ uri: NBDURI, options: Options = Options()) async throws -> NBDClient {
        let client = try await open(uri, options: options)
        do {
            if try await client.session == nil { try await client.go(uri.exportName) }
            return client
        } catch {
            await client.close()
            throw error
        }
    }

    /// Connects and agrees on the kind of replies. Then options may be sent; to an oldstyle server, requests at once.
    ///
    /// - Throws: `NBDClientError`.
    public static func open(_ uri: NBDURI, options: Options = Options()) async throws -> NBDClient {
        guard uri.requiresTLS || options.tls != nil else { return try await open(uri.address, options: options) }
        var options = options
        if options.tls == nil {
            guard uri.tls.kind != .psk else { throw NBDClientError.unsupported("tls-type=psk without a key") }
            guard uri.tls.kind != .anon else { throw NBDClientError.unsupported("tls-type=anon: it proves nothing to either side") }
            options.tls = uri.tls.verifiesPeer == false ? .unverified : TLSClientCredentials()
        }
        options.tlsHostname = options.tlsHostname ?? uri.tls.hostname
        return try await open(uri.address, options: options)
    }

    /// Connects and agrees on the kind of replies; in clear unless there are `options.tls`.
    ///
    /// - Throws: `NBDClientError`.
    public static func open(_ address: NBDURI.Address, options: Options = Options()) async throws -> NBDClient {
        let bootstrap = ClientBootstrap(group: options.eventLoopGroup).connectTimeout(TimeAmount(options.timeLimit))
        // Made for each attempt; here for a clear error before the first.
        _ = try session(options, address)
        let client: NBDClient
        do {
            var options = options
            if options.tls != nil { options.handshake.requiresTLS = true }
            let prepare: @Sendable (any Channel) -> EventLoopFuture<NBDClient> = { [options] in
                Self.prepare($0, options, address)
            }
            switch address {
            case .tcp(let host, let port):
                client = try await bootstrap.channelOption(.socketOption(.tcp_nodelay), value: 1)  // P-GEN-02
                    .connect(host: host, port: Int(port), channelInitializer: prepare)
            case .unix(let path):
                guard path.utf8.first != 0 else { throw NBDClientError.unsupported("sockets in the abstract namespace") }
                client = try await bootstrap.connect(unixDomainSocketPath: path, channelInitializer: prepare)
            case .vsock: throw NBDClientError.unsupported("vsock")
            }
        } catch let error as NBDClientError {
            throw error
        } catch {
            throw NBDClientError.cannotConnect(Self.explain(error, address))
        }
        do {
            try await client.onLoop { $0.greeting }
            return client
        } catch {
            await client.close()
            throw error
        }
    }

    private static func prepare(_ channel: any Channel, _ options: Options, _ address: NBDURI.Address) -> EventLoopFuture<NBDClient> {
        channel.eventLoop.makeCompletedFuture {
            let connection = ClientConnection(options, channel.eventLoop, tls: try session(options, address))
            try channel.pipeline.syncOperations.addHandler(connection)
            return NBDClient(options, channel, NIOLoopBound(connection, eventLoop: channel.eventLoop))
        }
    }

    /// The client's side of TLS for a connection to `address`; nil: it is in clear.
    private static func session(_ options: Options, _ address: NBDURI.Address) throws(NBDClientError) -> TLSClientSession? {
        guard let credentials = options.tls else { return nil }
        let host = if case .tcp(let host, _) = address { host } else { String?.none }
        let hostname = options.tlsHostname ?? host
        do {
            let isAddress = hostname.map { (try? SocketAddress(ipAddress: $0, port: 0)) != nil } ?? false
            return try credentials.makeSession(hostname: hostname, isAddress: isAddress)
        } catch {
            throw .tls("\(error)")
        }
    }

    /// Says goodbye (NBD_CMD_DISC, or NBD_OPT_ABORT before an export was chosen) and waits until the server has answered all that is on its
    /// way and closed.
    ///
    /// - Throws: `NBDClientError.timedOut` if the server does not close; the connection is closed all the same.
    public func disconnect() async throws { try await onLoop { $0.disconnect() } }

    /// Closes at once. Requests on their way fail with `.closed`.
    public func close() async {
        try? await channel.close().get()
    }

    /// Sends bytes as they are. For tests of servers: whatever comes back is still judged by the rules.
    public func sendRaw(_ bytes: [UInt8]) async throws { try await onLoop { $0.send(ByteBuffer(bytes: bytes)) } }

    /// Returns when the connection is closed, by whomever.
    public func waitUntilClosed() async { try? await channel.closeFuture.get() }

    /// Why the connection is of no use any more; nil: it is in use.
    public var failure: NBDClientError? {
        get async throws { try await onLoop { $0.eventLoop.makeSucceededFuture($0.failure) } }
    }

    // MARK: What was agreed

    /// nil: no export was chosen yet.
    public var session: ClientSession? {
        get async throws { try await onLoop { $0.eventLoop.makeSucceededFuture($0.session) } }
    }

    /// How the server greeted.
    public var style: HandshakeStyle {
        get async throws { try await onLoop { $0.eventLoop.makeSucceededFuture($0.style) } }
    }

    /// Which replies were agreed on.
    public var mode: ReplyMode {
        get async throws { try await onLoop { $0.eventLoop.makeSucceededFuture($0.mode) } }
    }

    func onLoop<T: Sendable>(_ body: @escaping @Sendable (ClientConnection) -> EventLoopFuture<T>) async throws -> T {
        let connection = connection
        return try await channel.eventLoop.flatSubmit { body(connection.value) }.get()
    }

    private static func explain(_ error: any Error, _ address: NBDURI.Address) -> String {
        let place =
            switch address {
            case .tcp(let host, let port): "\(host.sanitized()):\(port)"
            case .unix(let path): path.sanitized(limit: 200)
            case .vsock(let cid, let port): "vsock \(cid):\(port)"
            }
        return "\(place): \(explain(error))"
    }

    /// The reason alone: what NIO says around it is of no use to the person who typed an address.
    private static func explain(_ error: any Error) -> String {
        switch error {
        case let error as IOError: Errno(rawValue: error.errnoCode).description
        case let error as NIOConnectionError:
            (error.connectionErrors.map(\.error) + [error.dnsAError, error.dnsAAAAError].compactMap(\.self)).first.map(explain)
                ?? "no address"
        case ChannelError.connectTimeout: "timed out"
        default: "\(error)"
        }
    }
}
