import Block
import Synchronization

/// A file in memory that remembers what was done to it, so that a test can ask what a power cut would have left.
final class RecordingDevice: ResizableDevice {
    enum Step: Sendable {
        case write(offset: UInt64, bytes: [UInt8])
        case resize(UInt64)
        /// Everything before it is on the medium.
        case flush
        /// A note of the test's own.
        case mark(Int)
    }

    private struct State {
        var bytes: [UInt8]
        var steps: [Step] = []
        /// Fail the write or flush with this number from now on.
        var failsAfter: Int?
        var failure = BlockError.Kind.inputOutput
    }

    let info: DeviceInfo
    let first: [UInt8]
    private let state: Mutex<State>
    private let discarded: UInt8

    /// - Parameter discarded: what is found where bytes were discarded.
    init(_ bytes: [UInt8], isReadOnly: Bool = false, discarded: UInt8 = 0xDD) {
        first = bytes
        self.discarded = discarded
        state = Mutex(State(bytes: bytes))
        info = DeviceInfo(
            byteCount: UInt64(bytes.count), blockSize: BlockSize(maximum: 64 << 20), abilities: .allNative, isReadOnly: isReadOnly)
    }

    var steps: [Step] { state.withLock { $0.steps } }
    var bytes: [UInt8] { state.withLock { $0.bytes } }
    func mark(_ number: Int) { state.withLock { $0.steps.append(.mark(number)) } }
    /// - Parameter kind: `.noSpace` is for writes only: a flush needs no room.
    func fail(after count: Int?, as kind: BlockError.Kind = .inputOutput) { state.withLock { ($0.failsAfter, $0.failure) = (count, kind) } }

    var currentByteCount: UInt64 { state.withLock { UInt64($0.bytes.count) } }

    func resize(to byteCount: UInt64) async throws(BlockError) {
        state.withLock { state in
            Self.apply(.resize(byteCount), to: &state.bytes)
            state.steps.append(.resize(byteCount))
        }
    }

    func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        let count = buffer.byteCount
        let bytes: [UInt8]? = state.withLock { state in
            guard offset <= UInt64(state.bytes.count), UInt64(count) <= UInt64(state.bytes.count) - offset else { return nil }
            return Array(state.bytes[Int(offset)..<Int(offset) + count])
        }
        guard let bytes else { throw BlockError(.inputOutput, "\(count) bytes at \(offset) are behind the end") }
        buffer.copy(from: bytes.rawBytes)
    }

    func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        let copy = (0..<bytes.byteCount).map { bytes.unsafeLoad(fromByteOffset: $0, as: UInt8.self) }
        try record(.write(offset: offset, bytes: copy))
        if options.contains(.durable) { try record(.flush) }
    }

    func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        try record(.write(offset: range.start, bytes: [UInt8](repeating: 0, count: Int(range.count))))
    }

    /// As hostile as allowed, unless told otherwise: what was there is gone.
    func discard(_ range: ByteRange) async throws(BlockError) {
        try record(.write(offset: range.start, bytes: [UInt8](repeating: discarded, count: Int(range.count))))
    }

    func flush() async throws(BlockError) { try record(.flush) }

    private func record(_ step: Step) throws(BlockError) {
        let failure = state.withLock { state -> BlockError.Kind? in
            if let left = state.failsAfter {
                if case .flush = step, state.failure == .noSpace {} else if left == 0 { return state.failure }
                state.failsAfter = max(left - 1, 0)
            }
            Self.apply(step, to: &state.bytes)
            state.steps.append(step)
            return nil
        }
        if let failure { throw BlockError(failure, "the test wants this to fail") }
    }

    static func apply(_ step: Step, to bytes: inout [UInt8]) {
        switch step {
        case .write(let offset, let new):
            let end = Int(offset) + new.count
            if bytes.count < end { bytes.append(contentsOf: repeatElement(0, count: end - bytes.count)) }
            bytes.replaceSubrange(Int(offset)..<end, with: new)
        case .resize(let count):
            if bytes.count > Int(count) { bytes.removeLast(bytes.count - Int(count)) }
            if bytes.count < Int(count) { bytes.append(contentsOf: repeatElement(0, count: Int(count) - bytes.count)) }
        case .flush, .mark: break
        }
    }
}

/// What the medium may hold after a power cut: everything up to the last flush, and of what came later any part in any order.
struct PowerCuts {
    let device: RecordingDevice

    /// Calls `body` for a cut before each step: with all that was done by then, with nothing since the flush, and with `samples` parts of
    /// that, in another order.
    func forEach(samples: Int, seed: UInt64, _ body: (_ step: Int, _ medium: [UInt8], _ marks: [Int]) async throws -> Void) async rethrows {
        var random = SplitMix(seed: seed)
        var durable = device.first
        var pending: [RecordingDevice.Step] = []
        var marks: [Int] = []
        for (index, step) in device.steps.enumerated() {
            switch step {
            case .flush:
                for one in pending { RecordingDevice.apply(one, to: &durable) }
                pending = []
                continue
            case .mark(let number):
                marks.append(number)
                continue
            case .write, .resize:
                pending.append(step)
            }
            var all = durable
            for one in pending { RecordingDevice.apply(one, to: &all) }
            try await body(index, all, marks)
            guard pending.count > 1 else { continue }
            for _ in 0..<samples {
                var medium = durable
                for one in pending.filter({ _ in random.next() & 1 == 0 }).shuffled(using: &random) {
                    // The size of the file is no matter of order here: a longer one has zeroes.
                    if case .resize = one { continue }
                    RecordingDevice.apply(one, to: &medium)
                }
                for case .resize(let count) in pending where medium.count < Int(count) { RecordingDevice.apply(.resize(count), to: &medium) }
                try await body(index, medium, marks)
            }
        }
    }
}

struct SplitMix: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

enum Seed {
    /// A new one for each run; a failure names it.
    static var value: UInt64 { UInt64.random(in: 0 ... 1 << 32) }
}
