/// How a transmission takes writes and answers them. What is best depends on the socket and on how many clients keep its loop busy: measured, see
/// docs/decisions/0013.
public struct WritePolicy: Equatable, Sendable {
    /// Bytes that one turn writes before it sends replies. A write takes long, its reply is short, and the client can work on it while more is
    /// written.
    public var turnByteCount = 32 << 10
    /// The same where the last write was a long one: fewer replies come together then, and each call of the socket is dearer for them.
    public var longTurnByteCount = 32 << 10
    /// Writes from this length on, up to `Transmission.nowByteCountLimit`, are handed over (`AwaitedRequest.Shortcut.write`): what follows is received
    /// meanwhile.
    public var handOverFloor = UInt64.max
    /// So many are handed over at a time, at least 1; the next one waits.
    public var handOverLimit = 4
    /// A payload from this length on is received with nothing behind it but the next header, once its beginning is there: nothing of it is copied,
    /// and always the same memory is used. One call for each payload.
    public var aloneFloor = Int.max

    /// Writes from this length on wait while another loop writes one to the same device (`WriteTurns`).
    public var exclusiveFloor = Int.max

    /// Writes from this length on are long.
    static let longByteCount = 64 << 10

    public init() {}

    func turnByteCount(_ lastByteCount: Int) -> Int { lastByteCount < Self.longByteCount ? turnByteCount : longTurnByteCount }
}
