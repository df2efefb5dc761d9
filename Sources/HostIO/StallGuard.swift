import Synchronization

/// Decides whether an event loop may risk a buffered write that the kernel does not promise to finish without waiting.
///
/// Some file systems (ext4) refuse `RWF_NOWAIT` for buffered writes, although such a write is nearly always a copy into the page cache. The
/// exceptions are a journal that is being committed and a writer being throttled for too many dirty pages: then every client of the loop
/// would wait. So each such write is timed: one that took long sends all writes of this file to the threads for a while, and longer each
/// time it happens again. See docs/decisions/0010.
struct StallGuard: ~Copyable, Sendable {
    /// A write that takes longer than this, in nanoseconds, was held up.
    static let stallLimit: UInt64 = 5_000_000
    static let shortestPause: UInt64 = 20_000_000
    static let longestPause: UInt64 = 2_000_000_000

    /// No risk is taken before this time, in nanoseconds.
    private let resume = Atomic<UInt64>(0)
    private let pause = Atomic<UInt64>(Self.shortestPause)

    func admits(at now: UInt64) -> Bool { now >= resume.load(ordering: .relaxed) }

    /// A risk was taken. Two that end at the same moment may count as one: that only makes a pause shorter.
    func record(start: UInt64, end: UInt64) {
        guard end &- start > Self.stallLimit else { return }
        let last = pause.load(ordering: .relaxed)
        // Long after the last pause is over, the weather has changed.
        let isRecurring = start < resume.load(ordering: .relaxed) &+ 2 * last
        let next = isRecurring ? min(last * 2, Self.longestPause) : Self.shortestPause
        pause.store(next, ordering: .relaxed)
        resume.store(end &+ next, ordering: .relaxed)
    }
}
