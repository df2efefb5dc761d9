/// What a client may do with one export.
public struct Permissions: OptionSet, Hashable, Sendable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// LIST shows the export.
    public static let list = Permissions(rawValue: 1 << 0)
    /// The export can be opened, and read. All of the following need it.
    public static let read = Permissions(rawValue: 1 << 1)
    /// WRITE.
    public static let write = Permissions(rawValue: 1 << 2)
    /// TRIM and WRITE_ZEROES; needs `write`.
    public static let trim = Permissions(rawValue: 1 << 3)
    /// Metadata contexts: which parts are allocated, or dirty.
    public static let contexts = Permissions(rawValue: 1 << 4)

    public static let all: Permissions = [.list, .read, .write, .trim, .contexts]
}

/// Decides who may do what. Asked in handshakes only, and once more when an export is chosen: what a session may do is constant from then on,
/// and costs nothing.
public protocol Authorizer: Sendable {
    /// Whether a client is greeted that can, or must, encrypt. Of what `peer` may become, only its address and Unix user are known: false means that
    /// nothing which TLS could prove would let it in. `admits` follows. Default: everybody is.
    ///
    /// On an event loop: must not wait.
    func greets(_ peer: PeerIdentity) -> Bool

    /// Whether a client may come in at all. Asked when all that can be known of it is known: after its TLS handshake; where there is no TLS, before
    /// the greeting; and where TLS is a matter of choice, for one in clear when it first asks for something. A client that is refused is cut off without a word (S-TLS-07).
    /// So is a client with TLS that `permissions` gives nothing for any export.
    ///
    /// On an event loop: must not wait.
    func admits(_ peer: PeerIdentity) -> Bool

    /// Empty: for this client, there is no such export. On an event loop: must not wait.
    ///
    /// - Parameter export: the export's own name, also when the client has asked for the default one.
    func permissions(of peer: PeerIdentity, for export: String) -> Permissions
}

extension Authorizer {
    public func greets(_ peer: PeerIdentity) -> Bool { true }

    public func admits(_ peer: PeerIdentity) -> Bool { true }
}
