/// Who the other end has proved to be.
public enum TLSPeer: Hashable, Sendable {
    /// It was not asked to.
    case anonymous
    /// The subject of its certificate, in the words of GnuTLS: `C=GB,O=Example,CN=client`.
    case certificate(distinguishedName: String)
    case psk(user: String)
}

/// Why a peer is turned away although its TLS handshake went well.
public struct TLSRefusal: Error, Equatable, Sendable, CustomStringConvertible {
    public var description: String
    public init(_ description: String) { self.description = description }
}
