import NBDProtocol

/// Whether a client that we wait for, to send the rest of a message or to read its replies, is worth the wait. Knows no clock: `verdict` is
/// asked once in each `Limits.period` that the wait goes on.
///
/// Progress is counted in bytes, so that one byte now and then buys no time.
struct ProgressWatch {
    struct Limits: Equatable {
        /// Between two looks; nil: nothing is limited.
        var period: Duration?
        /// Looks without progress that are too many; nil: any number will do.
        var lookLimit: Int?
        /// Whether others who wait for memory count.
        var mindsOthers: Bool

        init(_ configuration: NBDServer.Configuration) {
            let (stall, progress) = (configuration.stallLimit, configuration.progressLimit)
            mindsOthers = stall > .zero
            period = [stall, progress].filter { $0 > .zero }.min()
            lookLimit = period.flatMap { progress > .zero ? max(1, Int(min(progress / $0, 1e9).rounded(.up))) : nil }
        }
    }

    /// Bytes that move in a period of something that moves at all.
    static let byteCountFloor = 1024
    /// In so many periods, a connection must get rid of what it holds while others wait for it.
    static let periodsToFinish = 10

    /// In both directions, since the connection began.
    var movedByteCount = 0
    private var seenByteCount = 0
    private var seenRequestCount: UInt64 = 0
    private var looksWithoutProgress = 0

    /// A period begins.
    mutating func begin(requestCount: UInt64) {
        seenByteCount = movedByteCount
        seenRequestCount = requestCount
    }

    /// - Parameters:
    ///   - isAwaitingPeer: nothing but the peer is waited for.
    ///   - heldByteCount: of memory that others could use; nil: none.
    /// - Returns: why the connection has to go; nil: it may stay.
    mutating func verdict(
        _ limits: Limits, isAwaitingPeer: Bool, requestCount: UInt64, heldByteCount: Int?, isContended: Bool
    ) -> ProtocolViolation? {
        guard isAwaitingPeer else {
            looksWithoutProgress = 0
            return nil
        }
        let moved = movedByteCount &- seenByteCount
        if limits.mindsOthers, isContended, let heldByteCount, moved < max(1, heldByteCount / Self.periodsToFinish) { return .stalled }
        if moved >= Self.byteCountFloor || requestCount != seenRequestCount {
            looksWithoutProgress = 0
        } else {
            looksWithoutProgress += 1
        }
        guard let lookLimit = limits.lookLimit, looksWithoutProgress >= lookLimit else { return nil }
        return .tooSlow
    }
}
