import Histogram
import NBDProtocol

/// What one connection, or all of them, have measured.
struct BenchTally: Sendable {
    /// How long requests took, in nanoseconds.
    struct Latencies: Sendable {
        private var histogram = Histogram<UInt64>(highestTrackableValue: Self.limit, numberOfSignificantValueDigits: .three)
        /// What took longer counts as this: an hour.
        private static let limit: UInt64 = 3_600_000_000_000

        var operationCount: UInt64 { histogram.totalCount }
        var maximum: UInt64 { histogram.maxRecorded }
        var mean: Double { histogram.mean }

        @inline(__always)
        mutating func record(_ nanoseconds: UInt64, count: UInt64) { histogram.record(min(nanoseconds, Self.limit), count: count) }
        mutating func add(_ other: Latencies) { histogram.add(other.histogram) }
        func percentile(_ percent: Double) -> UInt64 { histogram.valueAtPercentile(percent) }
    }

    var reads = Latencies()
    var writes = Latencies()
    /// CPU of the threads that made the load, in nanoseconds.
    var cpu: UInt64 = 0
    /// Requests that failed, from start to end, also outside of what is measured.
    private(set) var errors: [NBDError: UInt64] = [:]

    var errorCount: UInt64 { errors.values.reduce(0, +) }

    mutating func fail(_ error: NBDError) { errors[error, default: 0] += 1 }

    mutating func add(_ other: BenchTally) {
        reads.add(other.reads)
        writes.add(other.writes)
        cpu += other.cpu
        errors.merge(other.errors) { $0 + $1 }
    }

    /// "3 requests failed: EIO 2, ENOSPC 1"; nil: none did.
    var failures: String? {
        guard errorCount > 0 else { return nil }
        let kinds = errors.sorted { $0.key.rawValue < $1.key.rawValue }.map { "\($0.key) \($0.value)" }.joined(separator: ", ")
        return "\(errorCount) request\(errorCount == 1 ? "" : "s") failed: \(kinds)"
    }
}
