import Block
import NBDProtocol
import NIOCore
import Synchronization

@testable import NBDEngine

/// Takes what a shell would send.
struct CollectingSink: OutputSink {
    /// Enough; what came with the last piece is there all the same.
    var limit = Int.max
    private(set) var bytes: [UInt8] = []
    /// Bytes that were only named.
    private(set) var segmentByteCount = 0

    mutating func append(_ bytes: RawSpan) -> Bool {
        self.bytes += bytes.byteOffsets.map { bytes.unsafeLoad(fromByteOffset: $0, as: UInt8.self) }
        return self.bytes.count < limit
    }

    mutating func append(_ file: Segment.File, offset: UInt64, count: Int) -> Bool { append(.file(file, offset: offset, count: count)) }

    mutating func append(zeroes count: Int) -> Bool { append(.zeroes(count: count)) }

    private mutating func append(_ segment: Segment) -> Bool {
        segmentByteCount += segment.byteCount
        var buffer = ByteBuffer()
        buffer.writeWithOutputRawSpan(minimumWritableBytes: segment.byteCount) { output in _ = segment.readNow(into: &output) }
        precondition(buffer.readableBytes == segment.byteCount, "what was at hand is gone")
        return append(buffer.readableBytesSpan)
    }
}

/// Plays the shell around a `Transmission`: bytes in, tasks run, replies parsed byte by byte by an independent little parser.
final class EngineHarness {
    let device: ScriptedDevice
    var transmission: Transmission
    let budget: MemoryBudget
    let mode: ReplyMode
    let wakes: WakeCounter
    let events: TraceLog
    /// Everything that was sent.
    private(set) var output: [UInt8] = []
    /// How much of it has left, for tests that acknowledge by hand.
    var acknowledged = 0
    /// Work taken and not run yet.
    var work: [AwaitedRequest] = []
    private var cookie: UInt64 = 0x1111_0000
    /// As a shell does that shares one buffer between its connections, and drops output as it is sent.
    let isSharing: Bool
    private var shared = ByteBuffer()
    /// With `isSharing`: how much of the output a socket takes at a time.
    var sendLimit = Int.max

    init(
        _ mode: ReplyMode = .simple, device: ScriptedDevice = ScriptedDevice(), flags: TransmissionFlags? = nil,
        contexts: [MetaContext] = [.baseAllocation], sources: [UInt32: any ExtentSource]? = nil, limits: TransmissionLimits = TransmissionLimits(), minimumBlock: UInt32 = 1,
        maximumPayload: UInt32 = 32 << 20, isSharing: Bool = false,
        budget: MemoryBudget = MemoryBudget(byteCountLimit: 1 << 30), traces: Bool = false
    ) {
        self.device = device
        self.isSharing = isSharing
        self.mode = mode
        self.budget = budget
        var allFlags: TransmissionFlags = [.hasFlags, .flush, .fua, .cache, .multiConn]
        allFlags.formUnion(device.info.isReadOnly ? .readOnly : [.trim, .writeZeroes, .fastZero])
        if mode != .simple { allFlags.insert(.df) }
        if mode == .extended { allFlags.insert(.blockStatusPayload) }
        let export = ExportDescription(
            id: 1, name: "disk", byteCount: device.info.byteCount, flags: flags ?? allFlags,
            blockSizes: BlockSizes(minimum: minimumBlock, maximumPayload: maximumPayload))
        let log = TraceLog()
        let wakes = WakeCounter()
        events = log
        self.wakes = wakes
        let session = Session(export: export, flags: flags ?? allFlags, mode: mode, contexts: mode == .simple ? [] : contexts)
        let watch: Tracer = { log.append($0) }
        let trace = traces ? watch : nil
        transmission = Transmission(
            session: session, device: device, sources: sources ?? [9: StatusSource(device)], limits: limits, budget: budget,
            sendsSegments: isSharing, trace: trace, wake: { wakes.add() })
    }

    // Macros of tests take no value that cannot be copied.
    var isFinished: Bool { transmission.isFinished }
    var isMidMessage: Bool { transmission.isMidMessage }
    var isQuiet: Bool { transmission.isQuiet }
    var shouldSend: Bool { transmission.shouldSend }
    var wantsBytes: Bool { transmission.wantsBytes }
    var violation: ProtocolViolation? { transmission.violation }
    var requestCount: UInt64 { transmission.requestCount }
    var inboxCapacity: Int { transmission.inboxCapacity }

    /// One request header with its payload.
    func bytes(_ header: RequestHeader, _ payload: [UInt8] = []) -> [UInt8] {
        var buffer = ByteBuffer()
        buffer.writeWithOutputRawSpan(minimumWritableBytes: 32) { header.encode(into: &$0, mode: mode) }
        return Array(buffer.readableBytesView) + payload
    }

    func header(_ command: Command, _ offset: UInt64 = 0, _ length: UInt64 = 0, _ flags: CommandFlags = []) -> RequestHeader {
        cookie += 1
        var flags = flags
        if command == .write, mode == .extended { flags.insert(.payloadLength) }
        return RequestHeader(flags: flags, command: command, cookie: cookie, offset: offset, length: length)
    }

    /// Passes bytes on, in pieces of at most `pieces`; starts nothing.
    func feed(_ bytes: [UInt8], pieces: Int = .max) {
        var rest = bytes[...]
        while !rest.isEmpty {
            if isSharing {
                let count = transmission.receive(sharing: &shared) { output, limit in
                    let count = min(pieces, limit, rest.count)
                    for byte in rest.prefix(count) { output.append(byte) }
                    return count
                }
                rest = rest.dropFirst(count)
                collect()
            } else {
                transmission.receive(ByteBuffer(bytes: rest.prefix(pieces)))
                rest = rest.dropFirst(pieces)
            }
        }
        collect()
    }

    func collect() {
        work += transmission.takeWork()
        guard isSharing else {
            for buffer in transmission.takeOutput() { output += buffer.readableBytesView }
            return
        }
        while transmission.outputByteCount > 0 {
            var sink = CollectingSink(limit: sendLimit)
            transmission.showOutput(to: &sink)
            let sent = Array(sink.bytes.prefix(sendLimit))
            output += sent
            transmission.dropOutput(sent.count)
            transmission.proceed()
            work += transmission.takeWork()
        }
    }

    /// Everything sent so far has left.
    func acknowledge(_ byteCount: Int) {
        if isSharing { return }  // dropped already
        transmission.didSend(byteCount)
        collect()
    }

    /// Runs all work, one after the other, until there is none.
    func finish() async {
        while !work.isEmpty {
            let completion = await work.removeFirst().run()
            transmission.complete(completion)
            let before = output.count
            collect()
            acknowledge(output.count - before)
        }
    }

    /// One request from bytes to replies.
    func ask(
        _ command: Command, _ offset: UInt64 = 0, _ length: UInt64 = 0, _ flags: CommandFlags = [], payload: [UInt8] = []
    ) async -> [WireReply] {
        let start = output.count
        let length = command == .write && length == 0 ? UInt64(payload.count) : length
        feed(bytes(header(command, offset, length, flags), payload))
        await finish()
        return WireReply.parse(Array(output[start...]), mode: mode)
    }

    /// Replies without data.
    var replies: [WireReply] { WireReply.parse(output, mode: mode, readLengths: [0: 0]) }
}

final class WakeCounter: Sendable {
    private let count = Mutex(0)
    func add() { count.withLock { $0 += 1 } }
    var value: Int { count.withLock { $0 } }
}

final class TraceLog: Sendable {
    private let events = Mutex<[String]>([])
    func append(_ event: TraceEvent) { events.withLock { $0.append(event.name) } }
    var names: [String] { events.withLock { $0 } }
}

/// A simple reply or a chunk, as found on the wire.
struct WireReply: Equatable {
    /// nil: a simple reply.
    var type: ChunkType?
    var flags: UInt16 = 0
    /// Of a simple reply.
    var error: UInt32 = 0
    var cookie: UInt64
    /// Of an extended chunk.
    var offset: UInt64?
    var payload: [UInt8] = []

    var isDone: Bool { type == nil || flags == 1 }

    /// The error of either kind of reply.
    var errorCode: NBDError? {
        if type == nil { return error == 0 ? nil : NBDError(rawValue: error) }
        return type?.isError == true ? NBDError(rawValue: UInt32(number(payload.prefix(4)))) : nil
    }

    var text: String {
        let count = Int(number(payload.dropFirst(4).prefix(2)))
        return String(decoding: payload.dropFirst(6).prefix(count), as: UTF8.self)
    }

    /// - Parameter readLengths: by cookie, the data that a successful simple reply carries.
    static func parse(_ bytes: [UInt8], mode: ReplyMode, readLengths: [UInt64: Int] = [:]) -> [WireReply] {
        var replies: [WireReply] = []
        var rest = bytes[...]
        func take(_ count: Int) -> [UInt8] {
            defer { rest = rest.dropFirst(count) }
            precondition(rest.count >= count, "the stream ends inside a reply")
            return Array(rest.prefix(count))
        }
        while !rest.isEmpty {
            switch number(take(4)) {
            case 0x6744_6698:
                var reply = WireReply(error: UInt32(number(take(4))), cookie: number(take(8)))
                // Data of a READ run to the end or to the next reply: tests that mix say how long they are.
                reply.payload = take(readLengths[reply.cookie] ?? (mode == .simple && readLengths.isEmpty ? rest.count : 0))
                replies.append(reply)
            case 0x668E_33EF:
                let head = take(16)
                replies.append(
                    WireReply(
                        type: ChunkType(rawValue: UInt16(number(head[2..<4]))), flags: UInt16(number(head[0..<2])),
                        cookie: number(head[4..<12]), payload: take(Int(number(head[12..<16])))))
            case 0x6E8A_278C:
                let head = take(28)
                replies.append(
                    WireReply(
                        type: ChunkType(rawValue: UInt16(number(head[2..<4]))), flags: UInt16(number(head[0..<2])),
                        cookie: number(head[4..<12]), offset: number(head[12..<20]), payload: take(Int(number(head[20..<28])))))
            case let magic:
                preconditionFailure("no reply begins with \(String(magic, radix: 16))")
            }
        }
        return replies
    }
}

func number(_ bytes: some Collection<UInt8>) -> UInt64 { bytes.reduce(0) { $0 << 8 | UInt64($1) } }

func bigEndian<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    stride(from: T.bitWidth - 8, through: 0, by: -8).map { UInt8(truncatingIfNeeded: value >> T($0)) }
}
