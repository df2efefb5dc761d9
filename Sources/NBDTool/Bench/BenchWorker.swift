import NBDProtocol

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// One connection under load: the loop of one thread.
///
///     ┌─► fill free slots ─► one sendmsg ─► one recv ─► decode, record ─┐
///     └─────────────────────────────────────────────────────────────────┘
///
/// New requests are queued only when the queue is empty. So what waits to be sent is never more than `depth` requests, and the server has
/// always some of them before it.
struct BenchWorker: ~Copyable {
    private var line: BenchLine
    private var replies: BenchReplies
    private var workload: BenchWorkload
    private let period: BenchPeriod
    private var tally = BenchTally()

    private var isCounting = false
    private var isOver = false
    private var cpuAtStart: UInt64 = 0
    private var lastArrival: UInt64 = 0

    /// How often a thread that waits for a slow server looks at the clock.
    static let lookMilliseconds = 100
    /// After the end: how long we wait for a server that says nothing any more.
    static let silenceLimit: UInt64 = 10_000_000_000

    init(_ connection: BenchConnection, _ plan: BenchPlan, _ workload: BenchWorkload, _ payload: BenchPayload?, _ period: BenchPeriod) {
        connection.socket.setTimeLimit(milliseconds: Self.lookMilliseconds)
        line = BenchLine(connection.socket, mode: connection.session.mode, depth: plan.depth, payload: payload, pollLimit: plan.pollNanoseconds)
        replies = BenchReplies(depth: plan.depth, blockByteCount: plan.blockByteCount, mode: connection.session.mode)
        self.workload = workload
        self.period = period
    }

    /// Makes the load until the period is over and everything is answered. A failure ends it for the other connections, too.
    ///
    /// - Throws: `.runtime`: the server closed, fell silent, or broke the protocol.
    consuming func run() throws(ToolError) -> BenchTally {
        do throws(ToolError) {
            period.awaitAll()
            lastArrival = BenchClock.now()
            while !isOver || replies.waitingCount > 0 || line.hasUnsent { try turn() }
            return tally
        } catch {
            period.stop(now: BenchClock.now())
            // What failed before may be why.
            throw tally.failures.map { .runtime("\(error.message) (before that, \($0))") } ?? error
        }
    }

    private mutating func turn() throws(ToolError) {
        if !isOver, !line.hasUnsent { fill() }
        let hasArrived: Bool
        do throws(BenchLineError) {
            try line.send()
            if line.hasUnsent {
                hasArrived = line.waitForEither(milliseconds: Int32(Self.lookMilliseconds)) ? try line.receive(waiting: false) : false
            } else {
                hasArrived = try line.receive(waiting: true)
            }
        } catch {
            throw .runtime(Self.text(of: error))
        }
        let now = BenchClock.now()
        look(at: now)
        if hasArrived {
            lastArrival = now
            try takeReplies(now)
        } else if isOver, now - max(lastArrival, min(period.end, now)) > Self.silenceLimit {
            throw .runtime("the server has not answered \(replies.waitingCount) requests for 10 seconds")
        }
    }

    private mutating func fill() {
        let now = BenchClock.now()
        for _ in 0..<replies.freeCount {
            let (isWrite, offset) = workload.next()
            line.add(replies.begin(isWrite: isWrite, at: offset, sentAt: now))
        }
    }

    /// Whether replies that arrive now count.
    private mutating func look(at now: UInt64) {
        let end = period.end
        if !isCounting, !isOver, now >= period.start, now < end {
            isCounting = true
            cpuAtStart = BenchClock.threadCPU()
        }
        if now >= end, !isOver {
            if isCounting { tally.cpu = BenchClock.threadCPU() - cpuAtStart }
            isCounting = false
            isOver = true
        }
    }

    private mutating func takeReplies(_ now: UInt64) throws(ToolError) {
        do throws(ReplyViolation) {
            try Self.decode(&line, &replies)
        } catch {
            throw .runtime("\(error)")
        }
        // Requests that were sent together and answered together took equally long: one entry for all of them.
        var run = (isWrite: false, sentAt: UInt64(0), count: UInt64(0))
        while let reply = replies.takeFinished() {
            if let error = reply.error {
                tally.fail(error)
            } else if reply.sentAt == run.sentAt, reply.isWrite == run.isWrite {
                run.count += 1
            } else {
                record(run, now)
                run = (reply.isWrite, reply.sentAt, 1)
            }
        }
        record(run, now)
    }

    private mutating func record(_ run: (isWrite: Bool, sentAt: UInt64, count: UInt64), _ now: UInt64) {
        guard isCounting, run.count > 0 else { return }
        if run.isWrite {
            tally.writes.record(now - run.sentAt, count: run.count)
        } else {
            tally.reads.record(now - run.sentAt, count: run.count)
        }
    }

    /// Outside of `self`: a span into a part of it would borrow all of it.
    private static func decode(_ line: inout BenchLine, _ replies: inout BenchReplies) throws(ReplyViolation) {
        line.take(try replies.receive(line.received))
    }

    private static func text(of error: BenchLineError) -> String {
        switch error {
        case .closed: "the server closed the connection"
        case .failed(ECONNRESET), .failed(EPIPE): "the server broke the connection off"
        case .failed(let number): "the connection failed: \(HostProcess.text(of: number))"
        }
    }
}
