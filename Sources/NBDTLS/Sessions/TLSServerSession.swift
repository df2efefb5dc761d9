public import NIOSSL

/// The server's side of TLS on one connection. Belongs to the connection's event loop.
public final class TLSServerSession {
    /// Goes into the channel's pipeline, in front of who reads and writes in clear.
    public let handler: NIOSSLServerHandler
    private let identify: (NIOSSLCertificate?) throws(TLSRefusal) -> TLSPeer

    init(_ handler: NIOSSLServerHandler, identify: @escaping (NIOSSLCertificate?) throws(TLSRefusal) -> TLSPeer) {
        self.handler = handler
        self.identify = identify
    }

    /// Who the client has proved to be. Once the handshake is complete, before anything that the client says is believed.
    ///
    /// - Throws: when its certificate was revoked.
    public func peer() throws(TLSRefusal) -> TLSPeer { try identify(handler.peerCertificate) }
}
