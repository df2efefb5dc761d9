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
        var outbox = GatherList()
        let pool = BufferPool()
        /// Bytes of sends with long pieces that `transfers` does not know of yet.
        fileprivate var unnotedByteCount = 0
        /// Sends of bytes that lie in files.
        var sendCount: UInt64 = 0
        var majorFaultCount: UInt64 = 0
    }

    let host: HostLoop
    /// Long pieces of files leave by reference, or copied.
    let transfers: FasterWay
    private var content: Shared?

    private init(_ host: HostLoop, _ transfers: FasterWay) {
        self.host = host
        self.transfers = transfers
    }

    /// One for each loop of the host; none where the host has none.
    static func all() -> [FastLoop] {
        let transfers = FasterWay()
        return HostLoop.all.map { FastLoop($0, transfers) }
    }

    var shared: Shared {
        precondition(host.isCurrent, "touched off its loop")
        if let content { return content }
        let content = Shared()
        self.content = content
        return content
    }

    /// Bytes have been sent, long pieces among them. All loops write what they tell `transfers`, so it is not told each time.
    func noteTransfer(_ byteCount: Int) {
        let shared = shared
        shared.unnotedByteCount += byteCount
        guard shared.unnotedByteCount >= 1 << 20 else { return }
        transfers.note(moved: shared.unnotedByteCount, now: HostLoop.now)
        shared.unnotedByteCount = 0
    }
}
