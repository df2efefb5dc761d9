public import NBDProtocol
public import NBDTLS
public import NIOCore

/// A place where clients come in.
public struct Listener: Equatable, Sendable {
    public enum Address: Equatable, Sendable {
        /// A host name or numeric address, and a port; port 0 takes a free one. A name with several addresses listens on each.
        case tcp(host: String, port: Int)
        /// A path; one that begins with NUL is abstract (Linux).
        case unix(path: String)
        /// A listening socket that somebody else has bound, as systemd does. Owned by the server from its start on, also when that fails.
        case inherited(descriptor: CInt)
        /// A connected socket: serves one client and then ends. Owned by the server in the same way.
        case connected(descriptor: CInt)
    }

    public var address: Address
    /// Speak the oldstyle handshake and serve this export, without any negotiation (S-HS-04). nil: newstyle.
    public var oldstyleExport: String?
    /// Whether LIST is answered (S-LIST-06).
    public var isListable: Bool

    public init(_ address: Address, oldstyleExport: String? = nil, isListable: Bool = true) {
        self.address = address
        self.oldstyleExport = oldstyleExport
        self.isListable = isListable
    }
}

/// Which connection something happened on.
public struct ConnectionIdentity: Equatable, Sendable {
    /// Counted from 1 in the order of arrival.
    public let id: UInt64
    /// Address of the client, as the system tells it.
    public let peer: String
}

extension NBDServer {
    /// Where a server listens and what it allows. Every limit holds for strangers from their first byte.
    public struct Configuration: Sendable {
        public var listeners: [Listener]
        /// The export that clients get who ask for "" (P-OPT-03). nil: an export must be called "".
        public var defaultExport: String?
        /// Connections at a time; 0: no limit. When reached, new ones wait in the backlog until one leaves (S-SRV-04).
        public var connectionLimit = 100
        /// Connections of one peer at a time: of an IPv4 address, of the 64-bit network of an IPv6 address, of the user behind a Unix socket. Those
        /// beyond are closed at once. 0: no limit; nil: three quarters of a `connectionLimit` above 32,
        /// so that nobody can take all places; none of a smaller one.
        public var peerConnectionLimit: Int?
        /// Connections in handshake at a time; 0: no limit. One more cuts the one that has been at it longest: who is honest needs
        /// milliseconds.
        public var handshakeCountLimit = 64
        /// The same for the connections of one peer, which cut each other only.
        public var peerHandshakeCountLimit = 32
        /// Requests in flight for one client, at least 1 (S-LIM-07).
        public var requestLimit = 16
        /// Time for greeting and options together (S-HS-11); `.zero`: no limit.
        public var handshakeLimit: Duration = .seconds(10)
        /// Bytes of payloads, reads and unsent replies, for all connections together; at least 80 MiB.
        public var memoryLimit = 1 << 30
        /// The same for one connection; one request is always admitted.
        public var connectionMemoryLimit = 64 << 20
        /// While others wait for memory: a connection that holds some, and sends or reads less than a tenth of it in this time, is closed.
        /// `.zero`: never.
        public var stallLimit: Duration = .seconds(10)
        /// Even if nobody waits: a connection in the middle of a message, or with replies to read, that hardly moves for so long is closed: less
        /// than 1 KiB in any `stallLimit`. An idle client between requests may stay for ever. `.zero`: never.
        public var progressLimit: Duration = .seconds(120)
        /// At shutdown, time for requests in flight; then connections are cut.
        public var drainLimit: Duration = .seconds(10)
        /// End when the last client that had chosen an export leaves (S-SRV-07).
        public var stopsAfterLastClient = false
        /// A TCP peer that acknowledges nothing for so long is gone, even if it never said so: its connection is closed. An idle but living
        /// client is none the wiser. `.zero`: never.
        public var peerTimeLimit: Duration = .seconds(120)
        public var handshakeLimits = HandshakeLimits()
        /// nil: everything is in clear, and STARTTLS is refused.
        public var tls: TLS?
        /// Who may do what. nil: whoever can connect may do everything.
        public var authorizer: (any Authorizer)?
        /// Watches every step of every conversation. Costs nothing when nil.
        public var tracer: (@Sendable (TraceEvent, ConnectionIdentity) -> Void)?
        /// Whether plain connections are served by loops made for speed, where the host has them (Linux); NIO serves them otherwise. For
        /// diagnosis: what clients see is the same.
        public var usesFastPath = true
        /// On the fast path, how long a loop looks for the next request before it sleeps, while requests come fast; at most a second. `.zero`:
        /// not at all, which spares CPU time and makes each answer later.
        public var pollLimit: Duration = .microseconds(200)
        /// Called once by `start()`, when all addresses are bound and before anybody is let in: the moment to give up rights that were needed to
        /// bind. Gets what `uris` will be. What it throws ends the start.
        public var willAccept: (@Sendable (_ uris: [String]) throws -> Void)?
        /// Where handshakes run, and connections that are not on the fast path. nil: NIO's shared group with one loop for each core.
        public var eventLoopGroup: (any EventLoopGroup)?

        public init(listeners: [Listener]) { self.listeners = listeners }
    }
}

extension NBDServer.Configuration {
    /// How a server encrypts. TLS is for newstyle listeners; an oldstyle one cannot have it.
    public struct TLS: Sendable {
        /// What new connections prove themselves with; may be replaced while the server runs.
        public var credentials: TLSCredentialStore
        /// `.required`: nothing is served in clear. `.optional`: what `Export.requiresTLS` says.
        public var policy: TLSPolicy

        public init(credentials: TLSCredentialStore, policy: TLSPolicy = .required) {
            self.credentials = credentials
            self.policy = policy
        }
    }

    var tlsPolicy: TLSPolicy { tls?.policy ?? .off }

    var pollNanoseconds: UInt64 {
        let (seconds, attoseconds) = min(max(pollLimit, .zero), .seconds(1)).components
        return UInt64(seconds) * 1_000_000_000 + UInt64(attoseconds / 1_000_000_000)
    }
}
