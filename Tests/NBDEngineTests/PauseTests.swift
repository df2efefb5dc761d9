import Block
import HostIO
import NBDProtocol
import NIOCore
import Synchronization
import Testing

@testable import NBDEngine

@Suite struct `A pause` {
    // S-DRN-01, S-DRN-02, S-DRN-05
    @Test(arguments: [false, true])
    func `lets nothing begin, and everything go on afterwards`(isSharing: Bool) async {
        let harness = EngineHarness(.structured, isSharing: isSharing)
        harness.transmission.pause()
        #expect(harness.isQuiet, "a client that says nothing holds nobody up")
        #expect(!harness.wantsBytes)
        for offset in [0, 512, 1024] as [UInt64] { harness.feed(harness.bytes(harness.header(.read, offset, 512))) }
        #expect(harness.work.isEmpty)
        #expect(harness.isQuiet)
        harness.transmission.resume()
        harness.collect()
        await harness.finish()
        #expect(harness.device.diary == ["read 0+512", "read 512+512", "read 1024+512"])
    }

    // S-DRN-04
    @Test func `is quiet once what was in flight is over`() async {
        let harness = EngineHarness(.structured)
        harness.feed(harness.bytes(harness.header(.read, 0, 512)))
        harness.transmission.pause()
        #expect(!harness.isQuiet)
        await harness.finish()
        #expect(harness.isQuiet)
    }

    // S-DRN-07
    @Test(arguments: [1, 4096, 100_000])
    func `does not wait for the rest of a payload, and keeps what arrives`(pieces: Int) async {
        let harness = EngineHarness(.structured, isSharing: true)
        let payload = [UInt8](repeating: 7, count: 60_000)
        let request = harness.bytes(harness.header(.write, 4096, 60_000), payload)
        harness.feed(Array(request.prefix(30_000)))
        harness.transmission.pause()
        #expect(harness.isQuiet)
        #expect(harness.wantsBytes, "it may go on arriving")
        harness.feed(Array(request.dropFirst(30_000)), pieces: pieces)
        #expect(harness.isQuiet)
        #expect(!harness.wantsBytes)
        #expect(harness.device.diary.isEmpty)
        harness.transmission.resume()
        harness.collect()
        await harness.finish()
        #expect(harness.device.diary == ["write 4096+60000"])
        #expect(await harness.ask(.read, 0, 512).map(\.errorCode) == [nil], "the stream is in step")
    }

    @Test func `does not end a conversation whose last request is waiting`() async {
        let harness = EngineHarness(.structured)
        harness.transmission.pause()
        harness.feed(harness.bytes(harness.header(.write, 0, 512), [UInt8](repeating: 1, count: 512)))
        harness.transmission.endOfInput()
        #expect(!harness.isFinished)
        harness.transmission.resume()
        harness.collect()
        await harness.finish()
        #expect(harness.isFinished)
        #expect(harness.violation == nil)
        #expect(harness.device.diary == ["write 0+512"])
    }
}

/// Says that every byte lies in nothing, and counts what it is told.
private final class CountingMapper: RangeMapper {
    struct Counts: Equatable {
        var written: [ByteRange] = []
        var released = 0
    }
    let counts: Shared
    init(_ counts: Shared) { self.counts = counts }

    final class Shared: Sendable {
        let value = Mutex(Counts())
    }

    func mapRead(_ range: ByteRange, into segments: inout SegmentList) -> Bool {
        segments.append(.zeroes(count: Int(range.count)))
        return true
    }
    func mapWrite(_ range: ByteRange, into segments: inout SegmentList) -> Bool {
        segments.append(.zeroes(count: Int(range.count)))  // which cannot be written: the attempt fails
        return true
    }
    func didWrite(_ range: ByteRange) { counts.value.withLock { $0.written.append(range) } }
    func released() { counts.value.withLock { $0.released += 1 } }
}

private final class CountingDevice: BlockDevice {
    let info = DeviceInfo(byteCount: 1 << 20, abilities: .allNative)
    let counts = CountingMapper.Shared()
    func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) { buffer.fillWithZeroes() }
    func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {}
    func makeMapper() -> sending (any RangeMapper)? { CountingMapper(counts) }
    var counted: CountingMapper.Counts { counts.value.withLock { $0 } }
}

@Suite struct `A mapper` {
    private static func transmission(_ device: CountingDevice) -> Transmission {
        let session = Session(
            export: ExportDescription(id: 1, name: "", byteCount: 1 << 20, flags: .hasFlags, blockSizes: BlockSizes()),
            flags: .hasFlags, mode: .simple, contexts: [])
        return Transmission(session: session, device: device, budget: MemoryBudget(byteCountLimit: 1 << 30), sendsSegments: true, wake: {})
    }

    private static func request(_ command: Command, _ count: Int) -> ByteBuffer {
        var buffer = ByteBuffer()
        buffer.writeWithOutputRawSpan(minimumWritableBytes: 28) {
            RequestHeader(command: command, cookie: 1, offset: 0, length: UInt64(count)).encode(into: &$0, mode: .simple)
        }
        if command == .write { buffer.writeRepeatingByte(1, count: count) }
        return buffer
    }

    @Test func `is told when nothing that it has said is in use any more`() {
        let device = CountingDevice()
        var transmission = Self.transmission(device)
        transmission.receive(Self.request(.read, 100_000))
        #expect(device.counted.released == 0, "a reply that names its segments waits")
        transmission.dropOutput(50_000)
        #expect(device.counted.released == 0)
        transmission.dropOutput(transmission.outputByteCount)
        #expect(device.counted.released == 1)
        transmission.receive(Self.request(.read, 100_000))
        transmission.abandon()
        #expect(device.counted.released == 2)
    }

    @Test func `lets go of what it said when the client is paused`() {
        let device = CountingDevice()
        var transmission = Self.transmission(device)
        transmission.receive(Self.request(.read, 100_000))
        let byteCount = transmission.outputByteCount
        transmission.dropOutput(1000)
        transmission.pause()
        #expect(device.counted.released == 1)
        let isQuiet = transmission.isQuiet
        #expect(isQuiet)
        #expect(transmission.outputByteCount == byteCount - 1000)
        var sink = CollectingSink()
        transmission.showOutput(to: &sink)
        #expect(sink.segmentByteCount == 0 && sink.bytes.count == byteCount - 1000)
    }

    // S-BLK-23
    @Test func `is told of a write that was tried, also when it is done again in another way`() {
        let device = CountingDevice()
        var transmission = Self.transmission(device)
        transmission.receive(Self.request(.write, 4096))
        #expect(device.counted.written == [ByteRange(ofDevice: 4096)])
        let work = transmission.takeWork()
        #expect(work.count == 1)
    }
}
