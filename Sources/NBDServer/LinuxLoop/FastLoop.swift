import HostIO
import NBDEngine
import NIOCore

/// One loop of the host, with what the connections of a server share on it: each of them uses it only while it has its turn.
///
/// Belongs to the loop, but for what is constant.
// SAFETY: `@unchecked Sendable`: the variables are reached through `shared`, which checks that its caller runs on the loop.
final class FastLoop: @unchecked Sendable {
    final class Shared {
        /// Where bytes arrive. The transmission says how much room there is to be.
        var inbox = ByteBuffer()
        let outbox = GatherList()
        let pool = BufferPool()
        /// Long pieces of files leave by reference, or copied.
        var transfers = FasterWay()
        /// Sends of bytes that lie in files.
        var sendCount: UInt64 = 0
        var majorFaultCount: UInt64 = 0
    }

    let host: HostLoop
    private var content: Shared?

    private init(_ host: HostLoop) { self.host = host }

    /// One for each loop of the host; none where the host has none.
    static func all() -> [FastLoop] { HostLoop.all.map(FastLoop.init) }

    var shared: Shared {
        precondition(host.isCurrent, "touched off its loop")
        if let content { return content }
        let content = Shared()
        self.content = content
        return content
    }
}
