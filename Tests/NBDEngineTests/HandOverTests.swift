import Block
import HostIO
import NBDProtocol
import NIOCore
import Testing

@testable import NBDEngine

/// Long writes that the shell has somebody else do, while it receives what follows.
@Suite struct `A write that is handed over` {
    private static let byteCount = 1 << 20
    private static let count = 16_384

    private static func withTransmission(
        _ mode: ReplyMode = .simple, placesAreFixed: Bool = true, isDirect: Bool = false, limit: Int = 2, pool: BufferPool = BufferPool(),
        turns: WriteTurns = WriteTurns(), _ body: (inout Transmission, FileDevice) async throws -> Void
    ) async throws {
        try await withFile([UInt8](repeating: 0, count: byteCount), isDirect: isDirect) { file in
            let session = Session(
                export: ExportDescription(id: 1, name: "", byteCount: file.byteCount, flags: [.hasFlags, .fua], blockSizes: BlockSizes()),
                flags: [.hasFlags, .fua], mode: mode, contexts: [])
            let budget = MemoryBudget(byteCountLimit: 1 << 30)
            let device = FileDevice(file, placesAreFixed: placesAreFixed)
            var transmission = Transmission(
                session: session, device: device, budget: budget, pool: pool, sendsSegments: true, writeTurns: turns, wake: {})
            transmission.writePolicy.handOverFloor = UInt64(count)
            transmission.writePolicy.handOverLimit = limit
            transmission.writePolicy.turnByteCount = 1 << 20
            try await body(&transmission, device)
            transmission.abandon()
            #expect(budget.used == 0)
        }
    }

    /// A request as it comes from the client; its bytes are those of its number.
    private static func write(_ number: Int, count: Int = count, _ flags: CommandFlags = [], _ mode: ReplyMode = .simple) -> [UInt8] {
        var bytes = ByteBuffer()
        bytes.writeWithOutputRawSpan(minimumWritableBytes: 64) { output in
            let all: CommandFlags = mode == .extended ? flags.union(.payloadLength) : flags
            RequestHeader(flags: all, command: .write, cookie: UInt64(number), offset: UInt64(number * Self.count), length: UInt64(count))
                .encode(into: &output, mode: mode)
        }
        return Array(bytes.readableBytesView) + [UInt8](repeating: UInt8(number), count: count)
    }

    private static func arrive(_ bytes: [UInt8], at transmission: inout Transmission) {
        var shared = ByteBuffer()
        var rest = bytes[...]
        while !rest.isEmpty, transmission.wantsBytes {
            transmission.receive(sharing: &shared) { output, limit in
                for byte in rest.prefix(limit) { output.append(byte) }
                rest = rest.dropFirst(limit)
            }
        }
    }

    /// Writes to where the request says, as another loop would.
    private static func carryOut(_ request: AwaitedRequest) throws -> Bool {
        guard case .write(to: let place) = try #require(request.shortcut) else { return false }
        return request.write(to: place, WriteTurns())
    }

    @Test(arguments: [ReplyMode.simple, .structured, .extended])
    func `is written where it belongs and answered as any other`(mode: ReplyMode) async throws {
        var expected: [UInt8] = []
        try await Self.withTransmission(mode, placesAreFixed: false) { transmission, _ in
            Self.arrive(Self.write(3, [], mode), at: &transmission)
            for request in transmission.takeWork() { transmission.complete(await request.run()) }
            expected = Self.output(transmission)
        }
        try await Self.withTransmission(mode) { transmission, device in
            Self.arrive(Self.write(3, [], mode), at: &transmission)
            let request = try #require(transmission.takeWork().first)
            #expect(transmission.outputByteCount == 0 && transmission.requestsInFlight == 1)
            guard try Self.carryOut(request) else { return }  // this file system makes us wait now and then
            transmission.complete(request, isWritten: true)
            #expect(transmission.requestsInFlight == 0)
            #expect(Self.output(transmission) == expected)
            #expect(try await device.bytes(at: UInt64(3 * Self.count), count: Self.count) == [UInt8](repeating: 3, count: Self.count))
        }
    }

    private static func output(_ transmission: borrowing Transmission) -> [UInt8] {
        var sink = CollectingSink()
        transmission.showOutput(to: &sink)
        return sink.bytes
    }

    @Test(arguments: [1, 2, 4]) func `is one of so many; the next one waits, and nothing is read behind it`(limit: Int) async throws {
        try await Self.withTransmission(limit: limit) { transmission, _ in
            var rest = (0..<8).flatMap { Self.write($0) }[...]
            var answered = 0
            while answered < 8 {
                Self.arrive(Array(rest), at: &transmission)
                rest = []
                let work = transmission.takeWork()
                #expect(work.count == min(limit, 8 - answered) && transmission.requestsInFlight == work.count)
                if answered + work.count < 8 { #expect(!transmission.wantsBytes && !transmission.isHeldUp) }
                // It ends whenever the first one has.
                for request in work.reversed() { transmission.complete(request, isWritten: true) }
                answered += work.count
                if answered < 8 { #expect(transmission.requestsInFlight > 0) }
            }
            #expect(transmission.outputByteCount == 8 * 16 && transmission.requestsInFlight == 0 && transmission.wantsBytes)
        }
    }

    @Test func `leaves short ones to the loop`() async throws {
        try await Self.withTransmission { transmission, _ in
            Self.arrive(Self.write(0, count: 8192) + Self.write(1, count: 8192) + Self.write(2) + Self.write(3), at: &transmission)
            let work = transmission.takeWork()
            let handedOver = work.filter { $0.shortcut != nil }
            #expect(transmission.requestCount == 4 && handedOver.count == 2)
            // One may have been left to a task, to see how long it takes.
            let answered = 4 - work.count
            #expect(answered >= 1 && transmission.outputByteCount == answered * 16)
            for request in handedOver { transmission.complete(request, isWritten: true) }
            #expect(transmission.outputByteCount == (answered + 2) * 16)
        }
    }

    @Test func `is a long plain one to a place that stays, and not too long`() async throws {
        func shortcut(_ request: [UInt8], placesAreFixed: Bool = true) async throws -> AwaitedRequest.Shortcut? {
            var found: AwaitedRequest.Shortcut?
            try await Self.withTransmission(placesAreFixed: placesAreFixed) { transmission, _ in
                Self.arrive(request, at: &transmission)
                for request in transmission.takeWork() {
                    found = request.shortcut
                    transmission.complete(await request.run())
                }
            }
            return found
        }
        #expect(try await shortcut(Self.write(0)) != nil)
        #expect(try await shortcut(Self.write(0, count: Self.byteCount)) != nil)
        #expect(try await shortcut(Self.write(0, count: Self.count - 1)) == nil)
        #expect(try await shortcut(Self.write(0), placesAreFixed: false) == nil)
        // It is flushed, too, and that waits.
        #expect(try await shortcut(Self.write(0, .fua)) == nil)
    }

    @Test func `is left to its task when it could not be written at once`() async throws {
        // Past the page cache nothing is written at once.
        try await Self.withTransmission(isDirect: true, limit: 1) { transmission, _ in
            Self.arrive(Self.write(1) + Self.write(2), at: &transmission)
            let request = try #require(transmission.takeWork().first)
            #expect(try !Self.carryOut(request))
            transmission.complete(request, isWritten: false)
            #expect(transmission.requestsInFlight == 1 && transmission.outputByteCount == 0)
            // The task counts no longer: the other one's turn comes with its end at the latest.
            transmission.complete(await request.run())
            #expect(transmission.outputByteCount == 16 && transmission.requestsInFlight == 1)
        }
    }

    @Test func `gives its memory to the next one`() async throws {
        let pool = BufferPool()
        try await Self.withTransmission(pool: pool) { transmission, _ in
            for number in 0..<8 {
                // In two parts: what comes in one is not copied, and has no memory of its own.
                let bytes = Self.write(number, count: 100_000)
                Self.arrive(Array(bytes.prefix(5000)), at: &transmission)
                Self.arrive(Array(bytes.dropFirst(5000)), at: &transmission)
                for request in transmission.takeWork() { transmission.complete(request, isWritten: true) }
                transmission.dropOutput(transmission.outputByteCount)
                #expect(pool.keptCount <= 2)
            }
            #expect(pool.keptCount > 0)
        }
    }

    // S-BLK-23: a bitmap has it, whoever is still there
    @Test(arguments: [true, false]) func `is accounted for, also when its client has gone`(isWritten: Bool) async throws {
        try await Self.withTransmission { transmission, device in
            Self.arrive(Self.write(5), at: &transmission)
            let request = try #require(transmission.takeWork().first)
            transmission.abandon()
            #expect(device.written.isEmpty)
            transmission.complete(request, isWritten: isWritten)
            #expect(device.written == [ByteRange(start: UInt64(5 * Self.count), count: UInt64(Self.count))!])
            #expect(transmission.outputByteCount == 0)
        }
    }

    @Test func `keeps a paused client from being quiet`() async throws {
        try await Self.withTransmission { transmission, _ in
            Self.arrive(Self.write(0), at: &transmission)
            let request = try #require(transmission.takeWork().first)
            transmission.pause()
            #expect(transmission.isQuiet == false)
            transmission.complete(request, isWritten: true)
            #expect(transmission.isQuiet == true)
        }
    }

    @Test func `waits for no other loop any more, once there is help`() async throws {
        let turns = WriteTurns()
        try await Self.withTransmission(turns: turns) { transmission, _ in
            transmission.writePolicy.handOverFloor = .max
            transmission.writePolicy.exclusiveFloor = Self.count
            _ = turns.take {
                Self.arrive(Self.write(0), at: &transmission)
                #expect(transmission.isHeldUp == true)
                transmission.writePolicy.handOverFloor = UInt64(Self.count)
                transmission.proceed()
                #expect(transmission.isHeldUp == false)
                return true
            }
            let work = transmission.takeWork()
            #expect(work.count == 1)
            for request in work { transmission.complete(request, isWritten: true) }
        }
    }
}
