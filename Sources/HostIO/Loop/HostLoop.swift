internal import CHostIO
internal import Synchronization
internal import SystemPackage

/// What an event loop serves. Everything happens on the loop's thread.
public protocol LoopClient: AnyObject {
    /// The socket has changed: input has arrived, there is room for output, the peer has closed its side or is gone.
    func socketIsReady(input: Bool, output: Bool, hangup: Bool)
    /// Looks for input without having been told of any, and deals with it. Returns whether there was some.
    func poll() -> Bool
    /// What was asked for by `HostLoop.requestTurn`.
    func turn()
}

/// An event loop of this host, on a thread of its own that lives as long as the process (Linux): sockets by epoll, files by io_uring, and the
/// tasks that prefer it as their executor.
///
///     ┌─▶ mail from other threads ─▶ jobs of tasks ─▶ turns of clients ─▶ submit to the ring ─▶ poll or sleep ─▶ sockets, completions ─┐
///     └────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────┘
///
/// Before it sleeps, a loop with clients that want it looks for events for a while, as long as they lately came soon after one another: to
/// be woken takes longer than most requests. At first it asks the sockets that were busy last themselves: that spares a call each time. An
/// idle loop sleeps.
// SAFETY: everything but `inbox` and the constants is touched by the loop's thread alone (`isCurrent`), which is checked where others could
// call. The thread's reference to the loop is never given back, so the pointer that the thread remembers stays valid.
@safe public final class HostLoop: TaskExecutor, @unchecked Sendable {
    /// One for each core, for everybody in this process; empty where there is no such loop. Made when first asked for.
    public static let all: [HostLoop] = {
        var loops: [HostLoop] = []
        for _ in 0..<chostio_core_count() {
            guard let loop = try? HostLoop() else { break }
            loops.append(loop)
        }
        return loops
    }()

    /// The loops of this process, if they have rings; or why there is none.
    static let ringOfProcess = Result { () throws(HostError) -> HostLoop in
        guard let loop = all.first else { throw HostError(.notSupported, "use io_uring", detail: "this host has no event loop for it") }
        if let refusal = loop.ringRefusal { throw refusal }
        return loop
    }

    /// The loop that runs on this thread.
    static var current: HostLoop? {
        guard let pointer = unsafe chostio_loop_of_thread() else { return nil }
        return unsafe Unmanaged<HostLoop>.fromOpaque(pointer).takeUnretainedValue()
    }

    private struct Inbox {
        var work: [@Sendable () -> Void] = []
        var jobs: [UnownedJob] = []
        /// The thread waits in the kernel, or is about to, and has not been woken.
        var isAsleep = false
    }

    private struct Busy {
        let id: UInt64
        let client: any LoopClient
        var missCount = 0
    }

    private struct Slot {
        var client: (any LoopClient)?
        /// So that news for a client that has left never reaches its successor.
        var generation: UInt32 = 0
        var pollLimit: UInt64 = 0
    }

    private let poller: Int32
    private let event: Int32
    private let inbox = Mutex(Inbox())
    private let hasMail = Atomic<Bool>(false)
    private let clients = Atomic<Int>(0)

    private var mail: [@Sendable () -> Void] = []
    private var jobs: [UnownedJob] = []
    private var runningJobs: [UnownedJob] = []
    private var turns: [any LoopClient] = []
    private var runningTurns: [any LoopClient] = []
    private var slots: [Slot] = []
    private var freeSlots: [Int] = []
    private var ready = [chostio_ready](repeating: chostio_ready(), count: 64)
    var ring: RingSlots?
    var endedCalls: RingSlots.Ended = []
    var readMemory = RingMemory()
    /// Why the loop has no ring; nil when it has one.
    let ringRefusal: HostError?
    private var pollLimit: UInt64 = 0
    /// Clients whose sockets are asked directly.
    private var busy: [Busy] = []
    /// Rounds since all sockets were looked at.
    private var roundCount = 0
    /// What other loops do for this one now.
    var handedOverCount = 0
    /// Does what this loop hands over.
    private(set) lazy var helper = opposite
    /// Has dealt with a client since it slept last.
    let isServing = Atomic<Bool>(false)
    /// Nanoseconds between the end of work and the next event, smoothed.
    private var smoothedGap: UInt64 = gapLimit

    /// Longer gaps count as this long, so that one long pause is soon forgotten.
    private static let gapLimit: UInt64 = 1_000_000
    /// With more busy clients than this, one look at all sockets is cheaper.
    private static let busyLimit = 4
    private static let missLimit = 64
    private static let roundLimit = 16
    private static let eventUserData = UInt64.max
    private static let ringUserData = UInt64.max - 1

    /// - Parameter entryCount: calls in the ring at a time, a power of two.
    /// - Throws: why there is no loop. One without a ring is a loop, too.
    init(
        entryCount: UInt32 = 256, openRing: (UInt32) throws(HostError) -> Ring = { (count) throws(HostError) in try Ring(entryCount: count) }
    ) throws(HostError) {
        poller = chostio_poller_open()
        guard poller >= 0 else { throw HostError(Errno(rawValue: -poller), "make an event loop") }
        event = chostio_event_open()
        do throws(HostError) {
            let ring = try openRing(entryCount)
            _ = chostio_poller_add(poller, ring.descriptor, Self.ringUserData, true)
            self.ring = RingSlots(ring, slotCount: Int(entryCount))
            ringRefusal = nil
        } catch {
            ringRefusal = error
        }
        guard event >= 0, chostio_poller_add(poller, event, Self.eventUserData, true) >= 0 else {
            throw HostError(.tooManyOpenFiles, "make an event loop")
        }
        let reference = unsafe Unmanaged.passRetained(self)
        // SAFETY: the thread takes over the reference that was retained for it; the context is that reference, never null.
        let started = unsafe chostio_start_thread(
            { context in
                unsafe chostio_set_loop_of_thread(context)
                guard let context = unsafe context else { return }
                unsafe Unmanaged<HostLoop>.fromOpaque(context).takeUnretainedValue().run()
            }, reference.toOpaque())
        guard started >= 0 else {
            // SAFETY: no thread took the reference over.
            unsafe reference.release()
            throw HostError(Errno(rawValue: -started), "start a thread")
        }
    }

    deinit {
        _ = chostio_close(poller)
        if event >= 0 { _ = chostio_close(event) }
    }

    /// Whether the caller runs on this loop.
    public var isCurrent: Bool { Self.current === self }

    /// Clients at this moment, or soon: for whoever shares them out.
    public var clientCount: Int { clients.load(ordering: .relaxed) }

    // MARK: From any thread

    public func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        if isCurrent { return jobs.append(job) }
        post { $0.jobs.append(job) }
    }

    /// Runs `work` on the loop, soon.
    public func execute(_ work: @escaping @Sendable () -> Void) {
        post { $0.work.append(work) }
    }

    private func post(_ add: (inout Inbox) -> Void) {
        let mustWake = inbox.withLock { inbox in
            add(&inbox)
            hasMail.store(true, ordering: .relaxed)
            defer { inbox.isAsleep = false }
            return inbox.isAsleep
        }
        if mustWake { _ = chostio_event_signal(event) }
    }

    /// Announces a client that will be added: others who look for an idle loop see it at once.
    public func reserve() { clients.add(1, ordering: .relaxed) }

    /// A client that was announced and was not added will not come.
    public func withdraw() { clients.subtract(1, ordering: .relaxed) }

    // MARK: From the loop

    /// Watches a socket for a client, who was announced by `reserve`, until `remove`. Returns what to name it by.
    ///
    /// - Parameter pollLimit: how long the loop may look for the client's next request before it sleeps, in nanoseconds.
    public func add(_ client: any LoopClient, _ socket: StreamSocket, pollLimit: UInt64) throws(HostError) -> UInt64 {
        precondition(isCurrent)
        if freeSlots.isEmpty {
            freeSlots.append(slots.count)
            slots.append(Slot())
        }
        let index = freeSlots[freeSlots.count - 1]
        let id = UInt64(slots[index].generation) << 32 | UInt64(index)
        let result = chostio_poller_add(poller, socket.descriptor, id, false)
        guard result >= 0 else { throw HostError(Errno(rawValue: -result), "watch a socket") }
        freeSlots.removeLast()
        slots[index].client = client
        slots[index].pollLimit = pollLimit
        self.pollLimit = max(self.pollLimit, pollLimit)
        return id
    }

    public func remove(_ id: UInt64, _ socket: StreamSocket) {
        precondition(isCurrent)
        guard let index = slot(of: id) else { return }
        _ = chostio_poller_remove(poller, socket.descriptor)
        slots[index].client = nil
        slots[index].generation &+= 1
        busy.removeAll { $0.id == id }
        freeSlots.append(index)
        clients.subtract(1, ordering: .relaxed)
        if slots[index].pollLimit == pollLimit {
            pollLimit = slots.reduce(0) { $1.client == nil ? $0 : max($0, $1.pollLimit) }
        }
    }

    /// The slot of a client that is still there.
    private func slot(of id: UInt64) -> Int? {
        let index = Int(id & 0xFFFF_FFFF)
        guard index < slots.count, slots[index].client != nil, UInt64(slots[index].generation) == id >> 32 else { return nil }
        return index
    }

    /// Tells `socketIsReady` also of room for output, or no longer.
    public func watchOutput(_ id: UInt64, _ socket: StreamSocket, _ isWanted: Bool) {
        _ = chostio_poller_modify(poller, socket.descriptor, id, isWanted)
    }

    /// Calls the client's `turn` once what has come in meanwhile is dealt with.
    public func requestTurn(_ client: any LoopClient) {
        turns.append(client)
    }

    /// Several clients keep the loop busy.
    public var isShared: Bool { busy.count > 1 }

    /// Lets others have the core for a moment.
    public static func giveWay() { chostio_yield() }

    /// Nanoseconds since some moment.
    public static var now: UInt64 { chostio_now() }

    /// How often this thread has waited for a page from a disk: sending what is at hand should cause none.
    public var majorFaultCount: UInt64 { chostio_major_faults() }

    // MARK: The thread

    private func run() -> Never {
        while true {
            if hasMail.load(ordering: .relaxed) { takeMail() }
            runJobs()
            runTurns()
            ring?.submit()
            let hasEnded = endCalls()
            dispatch(jobs.isEmpty && turns.isEmpty && !hasEnded ? waitForEvents() : look())
        }
    }

    private func takeMail() {
        inbox.withLock { inbox in
            hasMail.store(false, ordering: .relaxed)
            swap(&mail, &inbox.work)
            if jobs.isEmpty {
                swap(&jobs, &inbox.jobs)
            } else {
                jobs += inbox.jobs
                inbox.jobs.removeAll(keepingCapacity: true)
            }
        }
        let isLong = mail.count > 1024
        // Each is let go as soon as it has run: what it holds may be wanted again.
        mail.reverse()
        while let work = mail.popLast() { work() }
        if isLong { mail = [] }
    }

    /// Those that are there now: what they add waits until sockets were looked at.
    private func runJobs() {
        guard !jobs.isEmpty else { return }
        swap(&jobs, &runningJobs)
        for job in runningJobs {
            // SAFETY: each job is run exactly once, by the executor it was given to.
            unsafe job.runSynchronously(on: asUnownedTaskExecutor())
        }
        runningJobs.removeAll(keepingCapacity: true)
    }

    private func runTurns() {
        guard !turns.isEmpty else { return }
        swap(&turns, &runningTurns)
        for client in runningTurns { client.turn() }
        runningTurns.removeAll(keepingCapacity: true)
    }

    /// Returns how many entries of `ready` are filled.
    private func look(timeout: Int32 = 0) -> Int {
        roundCount = 0
        // SAFETY: the call fills at most as many entries as the array has.
        return Int(unsafe chostio_poller_wait(poller, &ready, Int32(ready.count), timeout))
    }

    private func pollBusy() -> Bool {
        var isFound = false
        var index = 0
        while index < busy.count {
            let id = busy[index].id
            let hasInput = busy[index].client.poll()
            // It may have gone meanwhile, and others with it.
            guard index < busy.count, busy[index].id == id else { return true }
            if hasInput {
                isFound = true
                isServing.store(true, ordering: .relaxed)
                busy[index].missCount = 0
            } else {
                busy[index].missCount += 1
                if busy[index].missCount > Self.missLimit {
                    busy.remove(at: index)
                    continue
                }
            }
            index += 1
        }
        return isFound
    }

    private func noteBusy(_ id: UInt64, _ client: any LoopClient) {
        guard !busy.contains(where: { $0.id == id }) else { return }
        if busy.count == Self.busyLimit { busy.removeFirst() }
        busy.append(Busy(id: id, client: client))
    }

    /// Nothing is to be done: waits for an event, awake at first if events come fast.
    private func waitForEvents() -> Int {
        let start = chostio_now()
        var count = 0
        // Who does our work, or waits for it, has a use for the core.
        if smoothedGap <= pollLimit, handedOverCount == 0 {
            var now = start
            var isFound = false
            repeat {
                roundCount += 1
                if roundCount < Self.roundLimit, !busy.isEmpty {
                    isFound = pollBusy()
                } else {
                    count = look()
                    isFound = count != 0
                    if !isFound { chostio_yield() }
                }
                if isFound || hasMail.load(ordering: .relaxed) || ring?.hasCompletion == true {
                    learn(gap: now - start)
                    return count
                }
                now = chostio_now()
            } while now - start < pollLimit
        }
        let maySleep = inbox.withLock { inbox in
            inbox.isAsleep = inbox.work.isEmpty && inbox.jobs.isEmpty
            return inbox.isAsleep
        }
        guard maySleep else { return 0 }
        isServing.store(false, ordering: .relaxed)
        count = look(timeout: -1)
        inbox.withLock { $0.isAsleep = false }
        learn(gap: chostio_now() - start)
        return count
    }

    private func learn(gap: UInt64) {
        let gap = min(gap, Self.gapLimit)
        smoothedGap = smoothedGap - smoothedGap / 8 + gap / 8
    }

    private func dispatch(_ count: Int) {
        ring?.reap()
        _ = endCalls()
        guard count > 0 else { return }
        if count > Self.busyLimit { busy.removeAll(keepingCapacity: true) }
        for index in 0..<count {
            let event = ready[index]
            switch event.user_data {
            case Self.eventUserData:
                _ = chostio_event_drain(self.event)
            case Self.ringUserData:
                break
            default:
                guard let slot = slot(of: event.user_data), let client = slots[slot].client else { continue }
                isServing.store(true, ordering: .relaxed)
                if count <= Self.busyLimit, event.what & UInt32(CHOSTIO_READY_INPUT) != 0 { noteBusy(event.user_data, client) }
                client.socketIsReady(
                    input: event.what & UInt32(CHOSTIO_READY_INPUT) != 0, output: event.what & UInt32(CHOSTIO_READY_OUTPUT) != 0,
                    hangup: event.what & UInt32(CHOSTIO_READY_HANGUP) != 0)
            }
        }
    }
}
