import NBDProtocol

/// Which requests a load consists of, by the names that fio gives them.
enum BenchPattern: String, CaseIterable, Sendable {
    case read, write, randread, randwrite, rw, randrw

    var isRandom: Bool { self == .randread || self == .randwrite || self == .randrw }
    var isMixed: Bool { self == .rw || self == .randrw }
    var writes: Bool { self != .read && self != .randread }
}

/// What `nbd bench` will do: checked, but not yet against the export, which nobody has asked for yet.
struct BenchPlan: Equatable, Sendable {
    static let depthRange = 1...1024
    static let connectionRange = 1...256
    static let blockByteCountRange = 1...UInt64(payloadByteCountLimit)
    /// Seconds; a day is long enough to find a leak.
    static let secondsLimit = 86_400.0

    var uri: NBDURI
    var pattern = BenchPattern.randread
    /// Percent of reads in a mixed pattern.
    var mix = 70
    /// Bytes of each request.
    var blockByteCount: UInt64 = 4096
    /// Requests in flight on each connection.
    var depth = 16
    var connectionCount = 1
    /// Seconds that count.
    var seconds = 5.0
    /// Seconds before them, which do not.
    var rampSeconds = 0.3
    /// The part of the export that is used, from its start; nil: all of it.
    var byteCount: UInt64?
    /// The best kind of replies to ask for.
    var mode = ReplyMode.structured
    /// Microseconds that a connection looks for replies before it sleeps: to be woken takes longer than most servers need, and would be
    /// measured with them. Nil: as long as a connection has a core for itself.
    var pollMicroseconds: Int?
    /// Decides the order of random requests and the bytes that are written.
    var seed: UInt64 = 1

    init(uri: NBDURI) { self.uri = uri }

    var pollNanoseconds: UInt64 { UInt64(pollMicroseconds ?? (connectionCount == 1 ? 50 : 0)) * 1000 }

    /// What was typed. - Throws: `.usage` naming the option at fault.
    init(
        uri: String, pattern: String, mix: Int?, blockSize: String, depth: Int, connections: Int, duration: Double, ramp: Double,
        size: String?, mode: String, seed: UInt64, poll: Int? = nil
    ) throws(ToolError) {
        do {
            self.uri = try NBDURI(parsing: uri)
        } catch {
            throw .usage("\(error)")
        }
        guard let named = BenchPattern(rawValue: pattern) else {
            let names = BenchPattern.allCases.map(\.rawValue).joined(separator: ", ")
            throw .usage("--pattern: '\(pattern.sanitized())' is none of \(names)")
        }
        self.pattern = named
        if let poll {
            guard (0...10_000).contains(poll) else { throw .usage("--poll: \(poll) is not a number of microseconds, 0 to 10000") }
            pollMicroseconds = poll
        }
        if let mix {
            guard named.isMixed else { throw .usage("--mix goes with --pattern rw and randrw") }
            guard (0...100).contains(mix) else { throw .usage("--mix: \(mix) is not a percentage of reads, 0 to 100") }
            self.mix = mix
        }
        guard let block = ByteSize.parse(blockSize), Self.blockByteCountRange.contains(block) else {
            throw .usage("--block-size: '\(blockSize.sanitized())' is not a size from 1 byte to 32 MiB")
        }
        blockByteCount = block
        guard Self.depthRange.contains(depth) else { throw .usage("--depth: \(depth) is not within 1 to \(Self.depthRange.upperBound)") }
        self.depth = depth
        guard Self.connectionRange.contains(connections) else {
            throw .usage("--connections: \(connections) is not within 1 to \(Self.connectionRange.upperBound)")
        }
        connectionCount = connections
        guard duration > 0, duration <= Self.secondsLimit else { throw .usage("--duration: \(duration) is not within 0 to 86400 seconds") }
        seconds = duration
        guard ramp >= 0, ramp <= Self.secondsLimit else { throw .usage("--ramp: \(ramp) is not within 0 to 86400 seconds") }
        rampSeconds = ramp
        if let size {
            guard let count = ByteSize.parse(size), count > 0 else { throw .usage("--size: '\(size.sanitized())' is not a size") }
            byteCount = count
        }
        switch mode {
        case "simple": self.mode = .simple
        case "structured": self.mode = .structured
        case "extended": self.mode = .extended
        default: throw .usage("--mode: '\(mode.sanitized())' is none of simple, structured, extended")
        }
        self.seed = seed
    }

    /// How many blocks of the export are used. - Throws: `.runtime` when the export is not fit for this load.
    func blockCount(of info: ExportInfo) throws(ToolError) -> UInt64 {
        if pattern.writes, info.flags.contains(.readOnly) {
            throw .runtime("the export is read-only, and pattern \(pattern.rawValue) writes")
        }
        let used = byteCount ?? info.byteCount
        guard used <= info.byteCount else { throw .runtime("--size \(used) is more than the export's \(info.byteCount) bytes") }
        // Without sizes told, every server takes 32 MiB and single bytes (P-SIZE-05, P-SIZE-10).
        let limits = info.blockSizes ?? BlockSizes()
        guard blockByteCount.isMultiple(of: UInt64(limits.minimum)) else {
            throw .runtime("--block-size \(blockByteCount) is no multiple of the server's smallest block, \(limits.minimum) bytes")
        }
        guard blockByteCount <= UInt64(limits.maximumPayload) else {
            throw .runtime("--block-size \(blockByteCount) is more than the server takes, \(limits.maximumPayload) bytes")
        }
        let blocks = used / blockByteCount
        guard blocks > 0 else { throw .runtime("\(used) bytes of the export are less than one block of \(blockByteCount)") }
        guard pattern.isRandom || blocks >= UInt64(connectionCount) else {
            throw .runtime("\(blocks) blocks are too few to give each of \(connectionCount) connections its own part")
        }
        return blocks
    }
}
