import Synchronization

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// When a run counts, in nanoseconds of `BenchClock`: from the ramp's end to its own, the same for all connections.
///
/// It begins when the thread of every connection is there: what starting them takes is not the server's.
final class BenchPeriod: Sendable {
    private let ramp: UInt64
    private let length: UInt64
    private let missingCount: Atomic<Int>
    /// 0: not all are there.
    private let currentStart = Atomic<UInt64>(0)
    private let currentEnd = Atomic<UInt64>(never)

    /// Not larger: `Atomic<UInt64>.min` compares as if there were a sign (Swift 6.3.1).
    private static let never = UInt64(Int64.max)

    init(_ plan: BenchPlan) {
        ramp = UInt64(plan.rampSeconds * 1e9)
        length = UInt64(plan.seconds * 1e9)
        missingCount = Atomic(plan.connectionCount)
    }

    /// Says that one more is there, and that it is now. - Returns: whether it was the last.
    func arrive(now: UInt64) -> Bool {
        guard missingCount.subtract(1, ordering: .relaxed).newValue == 0 else { return false }
        currentStart.store(now + ramp, ordering: .relaxed)
        currentEnd.min(now + ramp + length, ordering: .releasing)
        return true
    }

    /// For a connection's thread: says that it is there, and waits for the others.
    func awaitAll() {
        guard !arrive(now: BenchClock.now()) else { return }
        while currentEnd.load(ordering: .acquiring) == Self.never { usleep(200) }
    }

    var start: UInt64 { currentStart.load(ordering: .relaxed) }
    var end: UInt64 { currentEnd.load(ordering: .relaxed) }

    /// Ends it early, for all.
    func stop(now: UInt64) { currentEnd.min(now, ordering: .relaxed) }

    /// What has counted, in seconds; 0 if it was stopped before.
    var seconds: Double { start == 0 ? 0 : Double(end - min(start, end)) / 1e9 }
}
