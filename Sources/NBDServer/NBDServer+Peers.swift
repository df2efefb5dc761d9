import NIOCore

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

extension NBDServer {
    /// Lets the system find TCP peers that are gone without a word (S-CLI-11): keepalive probes while the connection is idle, a limit for
    /// unacknowledged data while it is not.
    func watchPeer(_ channel: any Channel) {
        let limit = configuration.peerTimeLimit
        guard limit > .zero, let options = channel.syncOptions else { return }
        switch channel.localAddress {
        case .v4, .v6: break
        default: return
        }
        let seconds = Int(min(max(3, limit.components.seconds), 1_000_000))
        // A socket that refuses one of them is served all the same.
        try? options.setOption(.socketOption(.so_keepalive), value: 1)
        #if os(Linux)
        try? options.setOption(.tcpOption(.init(rawValue: CInt(TCP_KEEPIDLE))), value: seconds / 2)
        try? options.setOption(.tcpOption(.init(rawValue: CInt(TCP_KEEPINTVL))), value: max(1, seconds / 6))
        try? options.setOption(.tcpOption(.init(rawValue: CInt(TCP_KEEPCNT))), value: 3)
        try? options.setOption(.tcpOption(.init(rawValue: CInt(TCP_USER_TIMEOUT))), value: seconds * 1000)
        #endif
    }
}
