import ArgumentParser
import NBDProtocol
import Testing

@testable import NBDTool

private let uri = "nbd+unix:///disk?socket=/tmp/s"

private func command(_ words: [String]) throws -> BenchPlan {
    let command = try #require(try NBDCommand.parseAsRoot(["bench"] + words + [uri]) as? BenchCommand)
    return try command.plan
}

private func plan(_ change: (inout BenchPlan) -> Void = { _ in }) throws -> BenchPlan {
    var plan = BenchPlan(uri: try NBDURI(parsing: uri))
    change(&plan)
    return plan
}

private func export(_ byteCount: UInt64, readOnly: Bool = false, sizes: BlockSizes? = nil) -> ExportInfo {
    ExportInfo(name: "", byteCount: byteCount, flags: readOnly ? [.hasFlags, .readOnly] : .hasFlags, blockSizes: sizes)
}

@Suite struct `The command line of nbd bench` {
    @Test func `has defaults`() throws {
        #expect(try command([]) == plan())
    }

    @Test func `says everything`() throws {
        let words =
            "--pattern rw --mix 0 --block-size 64K --depth 1024 --connections 256 --duration 0.25 --ramp 0 --size 1M --mode extended --seed 9"
        let wanted = try plan {
            $0.pattern = .rw
            $0.mix = 0
            $0.blockByteCount = 65536
            $0.depth = 1024
            $0.connectionCount = 256
            $0.seconds = 0.25
            $0.rampSeconds = 0
            $0.byteCount = 1 << 20
            $0.mode = .extended
            $0.seed = 9
        }
        #expect(try command(words.split(separator: " ").map(String.init)) == wanted)
    }

    @Test(arguments: ["read", "write", "randread", "randwrite", "rw", "randrw"])
    func `knows the pattern`(name: String) throws {
        #expect(try command(["--pattern", name]).pattern.rawValue == name)
    }

    @Test(arguments: [
        "--pattern=trim", "--mix=50", "--pattern=rw --mix=101", "--pattern=rw --mix=-1", "--block-size=0", "--block-size=4q",
        "--block-size=33554433", "--depth=0", "--depth=1025", "--connections=0", "--connections=257", "--duration=0", "--duration=-1",
        "--duration=86401", "--duration=nan", "--duration=inf", "--ramp=-0.1", "--ramp=nan", "--size=0", "--size=1x", "--mode=oldstyle",
    ])
    func `is refused, naming the option`(words: String) throws {
        let words = words.split(separator: " ").map(String.init)
        let option = try #require(words.last?.split(separator: "=", omittingEmptySubsequences: false).first)
        let error = #expect(throws: ToolError.self) { try command(words) }
        #expect(error?.kind == .usage)
        #expect(error?.message.hasPrefix(option) == true, "\(error?.message ?? "")")
    }

    @Test func `is refused for what is no URI`() {
        let error = #expect(throws: ToolError.self) {
            let command = try NBDCommand.parseAsRoot(["bench", "http://x"]) as? BenchCommand
            _ = try command?.plan
        }
        #expect(error?.kind == .usage)
    }
}

@Suite struct `A load for an export` {
    @Test(arguments: [(4096, 1), (8191, 1), (8192, 2), (1 << 40, 1 << 28)] as [(UInt64, UInt64)])
    func `uses whole blocks`(byteCount: UInt64, blocks: UInt64) throws {
        #expect(try plan().blockCount(of: export(byteCount)) == blocks)
    }

    @Test func `uses the part that was named`() throws {
        let plan = try plan { $0.byteCount = 10000 }
        #expect(try plan.blockCount(of: export(10000)) == 2)
        #expect(throws: ToolError.self) { try plan.blockCount(of: export(9999)) }
    }

    @Test(arguments: BenchPattern.allCases)
    func `writes only where it may`(pattern: BenchPattern) throws {
        let plan = try plan { $0.pattern = pattern }
        if [.read, .randread].contains(pattern) {
            #expect(try plan.blockCount(of: export(8192, readOnly: true)) == 2)
        } else {
            let error = #expect(throws: ToolError.self) { try plan.blockCount(of: export(8192, readOnly: true)) }
            #expect(error?.message.contains("read-only") == true)
        }
    }

    @Test(arguments: [(0, "less than one block"), (4095, "less than one block")] as [(UInt64, String)])
    func `needs one block`(byteCount: UInt64, text: String) throws {
        let error = #expect(throws: ToolError.self) { try plan().blockCount(of: export(byteCount)) }
        #expect(error?.message.contains(text) == true)
    }

    @Test func `keeps to the server's block sizes`() throws {
        let sizes = BlockSizes(minimum: 512, preferred: 4096, maximumPayload: 65536)
        for (count, isFine) in [(512, true), (1024, true), (65536, true), (256, false), (513, false), (66048, false)] as [(UInt64, Bool)] {
            let plan = try plan { $0.blockByteCount = count }
            let result = Result { try plan.blockCount(of: export(1 << 20, sizes: sizes)) }
            #expect((try? result.get()) == (isFine ? (1 << 20) / count : nil), "\(count)")
        }
    }

    @Test func `has a part for each connection, if it is sequential`() throws {
        for pattern in BenchPattern.allCases {
            let plan = try plan {
                $0.pattern = pattern
                $0.connectionCount = 3
            }
            #expect(try plan.blockCount(of: export(3 * 4096)) == 3)
            #expect((try? plan.blockCount(of: export(2 * 4096))) == (pattern.isRandom ? 2 : nil))
        }
    }
}

@Suite struct `The requests of a load` {
    private func offsets(_ plan: BenchPlan, blocks: UInt64, connection: Int, _ count: Int) -> [UInt64] {
        var workload = BenchWorkload(plan, blockCount: blocks, connection: connection)
        return (0..<count).map { _ in workload.next().offset }
    }

    @Test func `are SplitMix64's`() {
        // The reference's first values for seed 1234567.
        var random = SplitMix64(seed: 1_234_567)
        #expect((0..<3).map { _ in random.next() } == [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423])
    }

    @Test func `sequential ones share the export, and begin anew at the end of their part`() throws {
        let plan = try plan {
            $0.pattern = .read
            $0.blockByteCount = 10
            $0.connectionCount = 3
        }
        #expect(offsets(plan, blocks: 8, connection: 0, 4) == [0, 10, 20, 0])
        #expect(offsets(plan, blocks: 8, connection: 1, 4) == [30, 40, 50, 30])
        #expect(offsets(plan, blocks: 8, connection: 2, 4) == [60, 70, 60, 70])
    }

    @Test func `random ones reach every block, and differ by seed and connection`() throws {
        var plan = try plan { $0.blockByteCount = 512 }
        let first = offsets(plan, blocks: 8, connection: 0, 200)
        #expect(Set(first) == Set((0..<8).map { $0 * 512 }))
        #expect(first == offsets(plan, blocks: 8, connection: 0, 200))
        #expect(first != offsets(plan, blocks: 8, connection: 1, 200))
        plan.seed = 2
        #expect(first != offsets(plan, blocks: 8, connection: 0, 200))
    }

    @Test(arguments: [(BenchPattern.rw, 0), (.rw, 100), (.randrw, 0), (.randrw, 100), (.read, 70), (.write, 70), (.randwrite, 70)])
    func `read and write as the pattern says`(pattern: BenchPattern, mix: Int) throws {
        let plan = try plan {
            $0.pattern = pattern
            $0.mix = mix
        }
        var workload = BenchWorkload(plan, blockCount: 4, connection: 0)
        let writes = (0..<100).count { _ in workload.next().isWrite }
        #expect(writes == (pattern.isMixed ? 100 - mix : pattern == .read ? 0 : 100))
    }

    @Test func `read and write in the shares that were asked for`() throws {
        let plan = try plan { $0.pattern = .randrw }
        var workload = BenchWorkload(plan, blockCount: 4, connection: 0)
        let writes = (0..<10_000).count { _ in workload.next().isWrite }
        #expect((2800...3200).contains(writes))
    }
}

@Suite struct `The report of nbd bench` {
    private func report(_ pattern: BenchPattern, _ fill: (inout BenchTally) -> Void = { _ in }) throws -> BenchReport {
        var tally = BenchTally()
        fill(&tally)
        return BenchReport(plan: try plan { $0.pattern = pattern }, mode: .structured, seconds: 2, tally: tally)
    }

    @Test func `keeps what it promises to programs`() throws {
        let report = try report(.randread) {
            $0.reads.record(1000, count: 90)
            $0.reads.record(2000, count: 10)
            $0.cpu = 50_000
        }
        #expect(
            report.json.text == """
                {
                	"uri": "nbd+unix:///disk?socket=/tmp/s",
                	"pattern": "randread",
                	"block_size": 4096,
                	"depth": 16,
                	"connections": 1,
                	"seconds": 2.0,
                	"mode": "structured",
                	"operations": 100,
                	"errors": 0,
                	"ops_per_second": 50.0,
                	"bytes_per_second": 204800.0,
                	"latency_us": {
                		"mean": 1.1,
                		"p50": 1.0,
                		"p90": 1.0,
                		"p99": 2.0,
                		"p99.9": 2.0,
                		"max": 2.0
                	},
                	"client_cpu_us_per_op": 0.5
                }
                """)
    }

    @Test func `tells reads from writes where there are both`() throws {
        let report = try report(.randrw) {
            $0.reads.record(1000, count: 3)
            $0.writes.record(3000, count: 1)
        }
        let text = report.json.text
        #expect(text.contains("\"operations\": 4,"))
        #expect(text.contains("\"reads\": {\n\t\t\"operations\": 3,"))
        #expect(text.contains("\"writes\": {\n\t\t\"operations\": 1,"))
        #expect(text.contains("\"mean\": 1.5,"))
        #expect(report.text.contains("read latency   mean 1.0  p50 1.0"))
        #expect(report.text.contains("write latency  mean 3.0  p50 3.0"))
    }

    @Test func `is fit for people`() throws {
        let report = try report(.write) {
            $0.writes.record(1_234_000, count: 1000)
            $0.cpu = 1_006_000
        }
        let lines = report.text.split(separator: "\n")
        #expect(lines.contains("what        write, blocks of 4096 bytes, depth 16, 1 connection"))
        #expect(lines.contains("operations  1000"))
        #expect(lines.contains("IOPS        500"))
        #expect(lines.contains("bandwidth   2.0 MiB/s"))
        #expect(lines.contains("client CPU  1.01 µs an operation"))
    }

    @Test func `of nothing is zero`() throws {
        var report = try report(.rw)
        report.seconds = 0
        #expect(report.json.text.contains("\"ops_per_second\": 0.0"))
        #expect(report.json.text.contains("\"client_cpu_us_per_op\": 0.0"))
        #expect(report.text.contains("IOPS           0\n"))
    }

    @Test func `names errors`() throws {
        var tally = BenchTally()
        #expect(tally.failures == nil)
        tally.fail(.inputOutput)
        #expect(tally.failures == "1 request failed: EIO 1")
        var other = BenchTally()
        other.fail(.noSpace)
        other.fail(.inputOutput)
        tally.add(other)
        #expect(tally.failures == "3 requests failed: EIO 2, ENOSPC 1")
        #expect(tally.errorCount == 3)
    }

    @Test func `sums up connections`() {
        var sum = BenchTally()
        for value in 1...100 as ClosedRange<UInt64> {
            var one = BenchTally()
            one.reads.record(value * 10_000_000, count: 1)
            one.cpu = 2
            sum.add(one)
        }
        #expect(sum.reads.operationCount == 100)
        #expect(sum.cpu == 200)
        #expect(sum.reads.maximum == 1_000_000_000)
        // Three digits are kept.
        #expect((989_000_000...991_000_000).contains(sum.reads.percentile(99)))
        #expect((504_000_000...506_000_000).contains(sum.reads.mean.rounded()))
    }

    @Test func `counts what takes longer than an hour as an hour`() {
        var tally = BenchTally()
        tally.writes.record(.max, count: 2)
        #expect(tally.writes.operationCount == 2)
        #expect(tally.writes.maximum == 3_600_000_000_000)
    }

    @Test func `counts a period from the moment that all are there and the ramp is over`() throws {
        let plan = try plan {
            $0.rampSeconds = 0.5
            $0.seconds = 2
            $0.connectionCount = 2
        }
        let period = BenchPeriod(plan)
        #expect(!period.arrive(now: 5))
        #expect(period.arrive(now: 1_000_000_000))
        #expect(period.start == 1_500_000_000)
        #expect(period.end == 3_500_000_000)
        period.stop(now: 2_500_000_000)
        period.stop(now: 3_000_000_000)
        #expect(period.seconds == 1)
        period.stop(now: 1_200_000_000)
        #expect(period.seconds == 0)
    }

    @Test func `counts nothing when it was stopped before all were there`() throws {
        let period = BenchPeriod(try plan { $0.connectionCount = 2 })
        period.stop(now: 3)
        period.awaitAll()
        #expect(period.end == 3)
        #expect(period.seconds == 0)
    }
}
