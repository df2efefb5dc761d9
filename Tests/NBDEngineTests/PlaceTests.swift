import Block
import HostIO
import NBDProtocol
import NIOCore
import Testing

@testable import NBDEngine

/// Short reads of what is not in memory: the shell may read them itself, where the request says.
@Suite struct `A read that is not at hand` {
    private static let contents = (0..<131_072).map { UInt8(truncatingIfNeeded: $0 &* 31 >> 3) }

    private static func withTransmission(
        _ mode: ReplyMode, placesAreFixed: Bool = true, maximumPayload: UInt32 = 32 << 20, _ body: (inout Transmission) async throws -> Void
    ) async throws {
        // Past the page cache nothing is at hand.
        try await withFile(contents, isDirect: true) { file in
            let session = Session(
                export: ExportDescription(
                    id: 1, name: "", byteCount: file.byteCount, flags: .hasFlags, blockSizes: BlockSizes(maximumPayload: maximumPayload)),
                flags: [.hasFlags, .fua, .df], mode: mode, contexts: [])
            let budget = MemoryBudget(byteCountLimit: 1 << 30)
            var transmission = Transmission(
                session: session, device: FileDevice(file, placesAreFixed: placesAreFixed, wholeUpTo: 65_536), budget: budget,
                sendsSegments: true, wake: {})
            try await body(&transmission)
            transmission.abandon()
            #expect(budget.used == 0)
        }
    }

    private static func ask(
        _ transmission: inout Transmission, _ mode: ReplyMode, _ offset: UInt64, _ length: UInt64, _ flags: CommandFlags = []
    ) throws -> AwaitedRequest {
        var shared = ByteBuffer()
        let header = RequestHeader(flags: flags, command: .read, cookie: 7, offset: offset, length: length)
        transmission.receive(sharing: &shared) { output, _ in header.encode(into: &output, mode: mode) }
        let work = transmission.takeWork()
        return try #require(work.first)
    }

    private static func takeOutput(_ transmission: inout Transmission) -> [UInt8] {
        var sink = CollectingSink()
        transmission.showOutput(to: &sink)
        transmission.dropOutput(sink.bytes.count)
        return sink.bytes
    }

    @Test(arguments: [ReplyMode.simple, .structured, .extended], [CommandFlags(), .df])
    func `gets the same reply whoever reads it`(mode: ReplyMode, flags: CommandFlags) async throws {
        guard mode != .simple || flags.isEmpty else { return }  // DF is of structured replies
        try await Self.withTransmission(mode) { transmission in
            for (offset, count) in [(0, 4096), (777, 1), (30_000, 31_000)] {
                let first = try Self.ask(&transmission, mode, UInt64(offset), UInt64(count), flags)
                transmission.complete(await first.run())
                let expected = Self.takeOutput(&transmission)
                #expect(Array(expected.suffix(count)) == Array(Self.contents[offset..<offset + count]))
                let second = try Self.ask(&transmission, mode, UInt64(offset), UInt64(count), flags)
                guard case .read(from: .file(_, UInt64(offset), count)) = second.shortcut else {
                    Issue.record("\(count) bytes at \(offset) are said to be there: \(String(describing: second.shortcut))")
                    continue
                }
                transmission.complete(second, with: Self.contents[offset..<offset + count].span.bytes)
                let requestsInFlight = transmission.requestsInFlight
                #expect(requestsInFlight == 0)
                #expect(Self.takeOutput(&transmission) == expected)
            }
        }
    }

    @Test func `has no place when more is to be done, or the place may change`() async throws {
        func hasPlace(
            _ mode: ReplyMode, _ offset: UInt64 = 0, _ count: UInt64 = 4096, _ flags: CommandFlags = [], placesAreFixed: Bool = true,
            maximumPayload: UInt32 = 32 << 20
        ) async throws -> Bool {
            var hasPlace = false
            try await Self.withTransmission(mode, placesAreFixed: placesAreFixed, maximumPayload: maximumPayload) { transmission in
                let request = try Self.ask(&transmission, mode, offset, count, flags)
                hasPlace = request.shortcut != nil
                transmission.complete(await request.run())
            }
            return hasPlace
        }
        #expect(try await hasPlace(.structured))
        #expect(try await !hasPlace(.structured, placesAreFixed: false))
        // In two places.
        #expect(try await !hasPlace(.structured, 70_000))
        // S-CMD-01: a flush comes first.
        #expect(try await !hasPlace(.structured, 0, 4096, .fua))
        // Holes are looked for.
        #expect(try await !hasPlace(.structured, 0, 32 << 10))
        #expect(try await hasPlace(.structured, 0, 32 << 10, .df))
        #expect(try await hasPlace(.simple, 0, 32 << 10))
        // P-SIZE-13: in several chunks.
        #expect(try await !hasPlace(.extended, 0, 8192, [], maximumPayload: 4096))
    }

    @Test func `is forgotten when the connection is gone`() async throws {
        try await Self.withTransmission(.simple) { transmission in
            let request = try Self.ask(&transmission, .simple, 0, 4096)
            transmission.abandon()
            transmission.complete(request, with: Self.contents[0..<4096].span.bytes)
            let byteCount = transmission.outputByteCount
            #expect(byteCount == 0)
        }
    }
}
