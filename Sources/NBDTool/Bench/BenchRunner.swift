import NBDProtocol

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Runs a plan: connects everything, then a thread for each connection.
enum BenchRunner {
    /// - Throws: `.runtime`: no connection, an export that does not fit, or a server that failed on the way.
    static func run(_ plan: BenchPlan) async throws(ToolError) -> BenchReport {
        // Also ignores SIGPIPE.
        let signals = try StopSignals([SIGINT, SIGTERM])
        var connections: [BenchConnection] = []
        for _ in 0..<plan.connectionCount { connections.append(try BenchConnection.open(plan.uri, mode: plan.mode)) }
        // All are to the same export; what counts is what the last was told.
        guard let session = connections.last?.session else { throw .usage("no connections") }
        let blockCount = try plan.blockCount(of: session.info)
        let payload = plan.pattern.writes ? BenchPayload(byteCount: Int(plan.blockByteCount), seed: plan.seed) : nil

        let period = BenchPeriod(plan)
        let watch = Task {
            for await number in signals.stream {
                period.stop(now: BenchClock.now())
                // Who asks twice does not want to wait for the last answers.
                _ = signal(number, SIG_DFL)
            }
        }
        defer { watch.cancel() }
        let outcomes = await withTaskGroup(of: Result<BenchTally, ToolError>.self) { group in
            for (index, connection) in connections.enumerated() {
                group.addTask {
                    let outcome = await BenchThread.run {
                        let workload = BenchWorkload(plan, blockCount: blockCount, connection: index)
                        return Result { () throws(ToolError) in
                            try BenchWorker(connection, plan, workload, payload, period).run()
                        }
                    }
                    if let outcome { return outcome }
                    period.stop(now: BenchClock.now())
                    return .failure(.runtime("the system has no thread for connection \(index + 1)"))
                }
            }
            return await group.reduce(into: []) { $0.append($1) }
        }
        var total = BenchTally()
        for outcome in outcomes { total.add(try outcome.get()) }
        for connection in connections { connection.disconnect() }
        return BenchReport(plan: plan, mode: session.mode, seconds: period.seconds, tally: total)
    }
}

extension BenchConnection {
    /// Says goodbye: the server need not wonder. Nothing is awaited.
    fileprivate func disconnect() {
        var line = BenchLine(socket, mode: session.mode, depth: 1, payload: nil)
        line.add(RequestHeader(command: .disconnect, cookie: 0))
        try? line.send()
    }
}
