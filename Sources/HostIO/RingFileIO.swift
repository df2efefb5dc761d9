internal import Synchronization

/// File calls through the ring of the loop that the caller runs on, or of another one. One file takes its share only: a disk that hangs keeps
/// that, and the calls on other files go on.
///
/// The ring is for what starts without waiting: direct transfers, and short reads through the page cache. The kernel would give everything
/// else (buffered writes, syncs, fallocate) to a worker thread of its own; ours cost the same, and each file has its share of them.
final class RingFileIO: FileIO {
    private struct State {
        var runningCount = 0
        /// Longer than nothing only when `callLimit` calls run.
        var waiting: [CheckedContinuation<Void, Never>] = []

        mutating func enter(_ limit: Int) -> Bool {
            guard runningCount < limit else { return false }
            runningCount += 1
            return true
        }
    }

    private let loop: HostLoop
    private let callLimit: Int
    private let threads = ThreadedFileIO()
    private let state = Mutex(State())

    /// Longer reads through the page cache would keep the ring's thread busy with copying what is there already.
    private static let copyByteLimit = 128 << 10

    /// - Parameters:
    ///   - loop: its ring is used by callers that run on no loop.
    ///   - callLimit: most calls in rings at once, at least 1.
    init(_ loop: HostLoop, callLimit: Int = 64) {
        precondition(callLimit > 0)
        self.loop = loop
        self.callLimit = callLimit
    }

    func read(_ descriptor: Int32, into memory: BorrowedMemory, at offset: UInt64, isDirect: Bool) async -> Int {
        guard isDirect || memory.count <= Self.copyByteLimit else {
            return await threads.read(descriptor, into: memory, at: offset, isDirect: isDirect)
        }
        return await run(RingCall(.read, descriptor, memory, at: offset))
    }

    func write(_ descriptor: Int32, from memory: BorrowedMemory, at offset: UInt64, dsync: Bool, isDirect: Bool) async -> Int {
        guard isDirect else { return await threads.write(descriptor, from: memory, at: offset, dsync: dsync, isDirect: isDirect) }
        return await run(RingCall(.write, descriptor, memory, at: offset, dsync: dsync))
    }

    func datasync(_ descriptor: Int32) async -> Int {
        await threads.datasync(descriptor)
    }

    func submit(_ work: @escaping @Sendable () -> Void) {
        threads.submit(work)
    }

    /// False also when the file's share is in use.
    func beginRead(_ descriptor: Int32, _ count: Int, at offset: UInt64, then done: @escaping @Sendable (BorrowedMemory?) -> Void) -> Bool {
        guard let loop = HostLoop.current, state.withLock({ $0.enter(callLimit) }) else { return false }
        let isBegun = loop.read(descriptor, count, at: offset) { memory in
            self.leave()
            done(memory)
        }
        if !isBegun { leave() }
        return isBegun
    }

    private func run(_ call: RingCall) async -> Int {
        await enter()
        let outcome = await (HostLoop.current ?? loop).run(call)
        leave()
        switch outcome {
        case .finished(let result): return result
        case .unfinished(let call): return await threads.call { call.perform() }
        }
    }

    private func enter() async {
        if state.withLock({ $0.enter(callLimit) }) { return }
        await withCheckedContinuation { continuation in
            let isInside = state.withLock { state in
                // Looked at again: a call may have ended in between.
                if state.enter(callLimit) { return true }
                state.waiting.append(continuation)
                return false
            }
            if isInside { continuation.resume() }
        }
    }

    /// Whoever waits takes over the place.
    private func leave() {
        let next = state.withLock { state -> CheckedContinuation<Void, Never>? in
            if !state.waiting.isEmpty { return state.waiting.removeFirst() }
            state.runningCount -= 1
            return nil
        }
        next?.resume()
    }
}
