internal import CHostIO
internal import Synchronization

/// One io_uring (Linux 5.12 and later) and one thread that submits and reaps.
///
///     callers ──▶ inbox ──▶ ring thread ──io_uring_enter──▶ kernel
///        ▲                      │
///        └──── continuation ◀───┘
///
/// Callers do not submit themselves: the kernel ties a submission to its thread, cancels it when that thread ends, and interrupts that
/// thread's system calls to complete it. So a caller wakes the ring thread if it sleeps, and what has gathered goes in one system call.
///
/// At most `entryCount - 1` calls are in flight, and the others wait in the order they came. The inbox needs no bound of its own: each call
/// belongs to a request, and those are bounded for each client.
final class SharedRing: Sendable {
    /// The ring of this process, made when it is first wanted; or why there is none. As large as four files may use at once: see
    /// `RingFileIO`.
    static let ofProcess = Result { () throws(HostError) in try SharedRing(entryCount: 256) }

    enum Outcome: Sendable {
        /// Bytes read, or 0, or a negated errno.
        case finished(Int)
        /// The rest has to be done without the ring.
        case unfinished(RingCall)
    }

    struct Pending: Sendable {
        var call: RingCall
        let continuation: CheckedContinuation<Outcome, Never>
    }

    private struct Inbox {
        var calls: [Pending] = []
        /// The ring thread waits in the kernel, or is about to, and has not been woken.
        var isAsleep = false
    }

    private let inbox = Mutex(Inbox())
    private let event: Int32

    /// The ring lives as long as the process: its thread holds it.
    ///
    /// - Parameter entryCount: a power of two, at least 2.
    /// - Throws: why there is no ring.
    init(
        entryCount: UInt32, open: (UInt32) throws(HostError) -> Ring = { (count) throws(HostError) in try Ring(entryCount: count) }
    ) throws(HostError) {
        precondition(entryCount >= 2 && entryCount.nonzeroBitCount == 1)
        let ring = try open(entryCount)
        event = chostio_event_open()
        guard event >= 0 else { throw Ring.refusal(event) }
        let start = unsafe Unmanaged.passRetained(RingThread(RingLoop(ring, event: event, entryCount: Int(entryCount)), self))
        // SAFETY: the thread takes over the reference that was retained for it; the context is that reference, never null.
        let started = unsafe chostio_start_thread(
            { context in
                guard let context = unsafe context else { return }
                unsafe Unmanaged<RingThread>.fromOpaque(context).takeRetainedValue().run()
            }, start.toOpaque())
        guard started >= 0 else {
            // SAFETY: no thread took the reference over.
            unsafe start.release()
            _ = chostio_close(event)
            throw Ring.refusal(started)
        }
    }

    /// Lends the call's memory to the kernel until it returns.
    func run(_ call: RingCall) async -> Outcome {
        await withCheckedContinuation { continuation in
            let mustWake = inbox.withLock { inbox in
                inbox.calls.append(Pending(call: call, continuation: continuation))
                defer { inbox.isAsleep = false }
                return inbox.isAsleep
            }
            if mustWake { _ = chostio_event_signal(event) }
        }
    }

    // MARK: For the ring thread

    /// Moves what has come into `calls`, which must be empty, and returns true; or returns false, and whoever comes next wakes the thread.
    func takeOrSleep(_ calls: inout [Pending]) -> Bool {
        inbox.withLock { inbox in
            inbox.isAsleep = inbox.calls.isEmpty
            swap(&calls, &inbox.calls)
            return !inbox.isAsleep
        }
    }

    /// Nobody needs to wake the thread any more.
    func isAwake() {
        inbox.withLock { $0.isAsleep = false }
    }
}

/// Carries the loop to its thread.
private final class RingThread {
    private var loop: RingLoop
    private let owner: SharedRing

    init(_ loop: consuming RingLoop, _ owner: SharedRing) {
        self.loop = loop
        self.owner = owner
    }

    func run() {
        loop.run(for: owner)
    }
}
