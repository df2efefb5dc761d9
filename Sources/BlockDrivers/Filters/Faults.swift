public import Block
internal import Synchronization

/// A filter that makes chosen requests fail or late: for tests, and for trying how clients take it.
public final class Faults: BlockDevice {
    public enum Operation: Hashable, Sendable, CaseIterable {
        case read, write, writeZeroes, discard, flush, prefetch, status
    }

    /// What happens to requests of some sort.
    public struct Rule: Sendable {
        /// Operations that the rule is for.
        public var operations: Set<Operation>
        /// Bytes of the device: requests that touch none of them are spared. Flushes are always meant.
        public var range: ByteRange
        /// This many requests that match are spared first.
        public var skip: Int
        /// The rule ends after this many.
        public var count: Int
        /// How long a request waits before anything else happens to it.
        public var delay: Duration
        /// What it then fails with, without having reached the device; nil lets it go on.
        public var error: BlockError?

        public init(
            _ operations: Set<Operation>, in range: ByteRange = ByteRange(ofDevice: .max), skip: Int = 0, count: Int = .max,
            delay: Duration = .zero, error: BlockError? = nil
        ) {
            self.operations = operations
            self.range = range
            self.skip = skip
            self.count = count
            self.delay = delay
            self.error = error
        }
    }

    private struct State {
        var rules: [Rule] = []
        var requestCounts: [Operation: Int] = [:]
    }

    public let info: DeviceInfo
    private let device: any BlockDevice
    private let state: Mutex<State>

    public init(_ device: any BlockDevice, _ rules: [Rule] = []) {
        self.device = device
        info = device.info
        state = Mutex(State(rules: rules))
    }

    /// Replaces the rules.
    public func setRules(_ rules: [Rule]) {
        state.withLock { $0.rules = rules }
    }

    /// Requests of this sort that came so far, failed ones too.
    public func requestCount(_ operation: Operation) -> Int {
        state.withLock { $0.requestCounts[operation, default: 0] }
    }

    public func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        try await meet(.read, ByteRange(start: offset, count: UInt64(buffer.byteCount)))
        try await device.read(at: offset, into: &buffer)
    }

    public func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        try await meet(.write, ByteRange(start: offset, count: UInt64(bytes.byteCount)))
        try await device.write(at: offset, from: bytes, options)
    }

    public func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        try await meet(.writeZeroes, range)
        try await device.writeZeroes(range, options)
    }

    public func discard(_ range: ByteRange) async throws(BlockError) {
        try await meet(.discard, range)
        try await device.discard(range)
    }

    public func flush() async throws(BlockError) {
        try await meet(.flush, nil)
        try await device.flush()
    }

    public func prefetch(_ range: ByteRange) async throws(BlockError) {
        try await meet(.prefetch, range)
        try await device.prefetch(range)
    }

    public func status(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        try await meet(.status, range)
        try await device.status(of: range, into: &extents)
    }

    public func allocationDepth(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        try await meet(.status, range)
        try await device.allocationDepth(of: range, into: &extents)
    }

    public func close() async {
        await device.close()
    }

    /// Every matching rule delays; the first that has an error ends the request.
    private func meet(_ operation: Operation, _ range: ByteRange?) async throws(BlockError) {
        let (delay, error) = state.withLock { state -> (Duration, BlockError?) in
            state.requestCounts[operation, default: 0] += 1
            var delay = Duration.zero
            for index in state.rules.indices where state.rules[index].operations.contains(operation) {
                guard range.map(state.rules[index].range.overlaps) ?? true, state.rules[index].count > 0 else { continue }
                if state.rules[index].skip > 0 {
                    state.rules[index].skip -= 1
                    continue
                }
                state.rules[index].count -= 1
                delay += state.rules[index].delay
                if let error = state.rules[index].error { return (delay, error) }
            }
            return (delay, nil)
        }
        if delay > .zero { try? await Task.sleep(for: delay) }
        if let error { throw error }
    }
}
