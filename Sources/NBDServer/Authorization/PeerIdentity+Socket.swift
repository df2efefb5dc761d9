import CSockets
import NIOCore

extension PeerIdentity {
    /// Who is connected to a socket.
    ///
    /// - Parameter address: the other end's, as NIO tells it; nil for a pair of sockets, too.
    init(of descriptor: CInt, address: SocketAddress?) {
        switch address {
        case .v4, .v6:
            self.init(address: address?.ipAddress.flatMap { IPAddress($0) }.map { .ip($0) } ?? .unknown)
        case .unixDomainSocket, nil:
            var credentials = csockets_credentials()
            // SAFETY: the call fills a structure that it gets for its duration only.
            let result = unsafe csockets_peer_credentials(descriptor, &credentials)
            // A socket of another kind has no credentials, whatever its address.
            guard result == 0 else {
                self.init(address: .unknown)
                return
            }
            self.init(
                address: .unix, unix: UnixCredentials(uid: credentials.uid, gid: credentials.gid, pid: credentials.pid))
        }
    }
}
