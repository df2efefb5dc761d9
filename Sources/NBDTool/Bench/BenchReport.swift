import NBDProtocol

/// What a run has measured, for people and for programs.
struct BenchReport {
    var plan: BenchPlan
    /// What was agreed on.
    var mode: ReplyMode
    /// What has counted.
    var seconds: Double
    var tally: BenchTally

    private var all: BenchTally.Latencies {
        var all = tally.reads
        all.add(tally.writes)
        return all
    }
    private var operationCount: UInt64 { tally.reads.operationCount + tally.writes.operationCount }
    private var operationsPerSecond: Double { seconds > 0 ? Double(operationCount) / seconds : 0 }
    private var bytesPerSecond: Double { operationsPerSecond * Double(plan.blockByteCount) }
    private var cpuMicroseconds: Double { operationCount > 0 ? Double(tally.cpu) / Double(operationCount) / 1000 : 0 }

    // MARK: For programs

    /// The keys are a promise: docs/bench.md.
    var json: JSON {
        var members: [(key: String, value: JSON)] = [
            ("uri", .string("\(plan.uri)")),
            ("pattern", .string(plan.pattern.rawValue)),
            ("block_size", .integer(plan.blockByteCount)),
            ("depth", .integer(UInt64(plan.depth))),
            ("connections", .integer(UInt64(plan.connectionCount))),
            ("seconds", Self.rounded(seconds)),
            ("mode", .string("\(mode)")),
            ("operations", .integer(operationCount)),
            ("errors", .integer(tally.errorCount)),
            ("ops_per_second", Self.rounded(operationsPerSecond)),
            ("bytes_per_second", Self.rounded(bytesPerSecond)),
            ("latency_us", Self.json(all)),
            ("client_cpu_us_per_op", Self.rounded(cpuMicroseconds)),
        ]
        if plan.pattern.isMixed {
            for (key, side) in [("reads", tally.reads), ("writes", tally.writes)] {
                members.append((key, .object([("operations", .integer(side.operationCount)), ("latency_us", Self.json(side))])))
            }
        }
        return .object(members)
    }

    private static func json(_ latencies: BenchTally.Latencies) -> JSON {
        .object(figures(latencies).map { ($0.name, rounded($0.microseconds)) })
    }

    private static func rounded(_ value: Double) -> JSON { .number((value * 1000).rounded() / 1000) }

    private static func figures(_ latencies: BenchTally.Latencies) -> [(name: String, microseconds: Double)] {
        [("mean", latencies.mean / 1000)]
            + [("p50", 50), ("p90", 90), ("p99", 99), ("p99.9", 99.9)].map { ($0, Double(latencies.percentile($1)) / 1000) }
            + [("max", Double(latencies.maximum) / 1000)]
    }

    // MARK: For people

    var text: String {
        let mix = plan.pattern.isMixed ? " (\(plan.mix) % reads)" : ""
        let connections = plan.connectionCount == 1 ? "1 connection" : "\(plan.connectionCount) connections"
        var rows = [
            ("what", "\(plan.pattern.rawValue)\(mix), blocks of \(plan.blockByteCount) bytes, depth \(plan.depth), \(connections)"),
            ("where", "\(plan.uri), \(mode) replies"),
            ("how long", "\(Self.decimal(seconds, 2)) s, after \(Self.decimal(plan.rampSeconds, 2)) s that do not count"),
            ("operations", "\(operationCount)" + (tally.failures.map { "; \($0)" } ?? "")),
            ("IOPS", Self.decimal(operationsPerSecond, 0)),
            ("bandwidth", "\(Self.decimal(bytesPerSecond / 1_048_576, 1)) MiB/s"),
        ]
        if plan.pattern.isMixed {
            rows.append(("read latency", Self.text(tally.reads)))
            rows.append(("write latency", Self.text(tally.writes)))
        } else {
            rows.append(("latency", Self.text(all)))
        }
        rows.append(("client CPU", "\(Self.decimal(cpuMicroseconds, 2)) µs an operation"))
        let width = (rows.map(\.0.count).max() ?? 0) + 2
        return rows.map { $0.0 + String(repeating: " ", count: width - $0.0.count) + $0.1 }.joined(separator: "\n")
    }

    private static func text(_ latencies: BenchTally.Latencies) -> String {
        figures(latencies).map { "\($0.name) \(decimal($0.microseconds, 1))" }.joined(separator: "  ") + "  µs"
    }

    /// Digits after the point as many as wanted: Foundation's formats are not for us.
    private static func decimal(_ value: Double, _ digits: Int) -> String {
        var scale = 1.0
        for _ in 0..<digits { scale *= 10 }
        let (whole, rest) = UInt64(value * scale + 0.5).quotientAndRemainder(dividingBy: UInt64(scale))
        guard digits > 0 else { return "\(whole)" }
        let text = "\(rest)"
        return "\(whole)." + String(repeating: "0", count: digits - text.count) + text
    }
}
