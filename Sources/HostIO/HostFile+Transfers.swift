internal import CHostIO
internal import Synchronization
internal import SystemPackage

extension HostFile {
    /// Transfers up to this long are tried at once before a thread is asked: copying them takes no longer than the way there.
    private static let attemptByteLimit = 128 << 10

    /// Fills `buffer` with the bytes at `offset`.
    ///
    /// - Throws: EIO also when the file ends before: somebody made it shorter, and zeroes would be a lie.
    public func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(HostError) {
        guard buffer.byteCount > 0 else { return }
        let memory = BorrowedMemory(&buffer)
        var done = memory.count <= Self.attemptByteLimit ? attemptRead(at: offset, into: memory) : 0
        if done == memory.count { return }
        let rest = memory.part(done, memory.count - done)
        let restOffset = offset &+ UInt64(done)
        let result: Int
        if let direct {
            result = await direct.read(into: rest, at: restOffset, by: io)
        } else {
            result = await io.read(descriptor, into: rest, at: restOffset, isDirect: false)
        }
        guard result >= 0 else { throw error(result, "read") }
        mapping?.learn(restOffset, result)
        done += result
        if done < memory.count { throw endOfFile(offset &+ UInt64(done), missing: memory.count - done) }
    }

    /// Begins a short read of what is not at hand by the ring of the loop that the caller runs on, without a task, and returns true; or does
    /// nothing and returns false.
    ///
    /// - Parameter done: called on the loop, later: with the bytes; or with nil when `read` has to be asked, which also says what is wrong.
    public func beginRead(at offset: UInt64, count: Int, then done: @escaping @Sendable (RawSpan?) -> Void) -> Bool {
        guard count > 0, count <= RingMemory.blockByteCount else { return false }
        let ended = { @Sendable (memory: BorrowedMemory?) in
            guard let memory else { return done(nil) }
            self.mapping?.learn(offset, count)
            memory.withSpan { done($0) }
        }
        if let direct { return direct.beginRead(count, at: offset, by: io, then: ended) }
        return io.beginRead(descriptor, count, at: offset, then: ended)
    }

    /// Writes all of `bytes` at `offset`; with `durable` they are on the medium when it returns.
    public func write(at offset: UInt64, from bytes: RawSpan, durable: Bool = false) async throws(HostError) {
        try checkNothingLost("write")
        guard bytes.byteCount > 0 else { return }
        // Also when it fails: it may have made the file longer.
        defer { noteEnd(offset &+ UInt64(bytes.byteCount)) }
        let memory = BorrowedMemory(reading: bytes)
        if !durable, memory.count <= Self.attemptByteLimit, attemptWrite(at: offset, from: memory) { return }
        let dsync = durable && !lacks(.dsync)
        let result = await transfer(memory, offset, dsync: dsync)
        if dsync, isLack(of: .dsync, result) || result == -Int(Errno.invalidArgument.rawValue) {
            return try await write(at: offset, from: bytes, flushingAfterwards: true)
        }
        if result == 0, durable, !dsync { return try await flush() }
        if dsync, result < 0 {
            // The kernel reports a failed write-back of *earlier* data to whoever syncs next, and only once. Running out of space is
            // usually about this write alone: then writing without the sync fails in the same way.
            let code = Errno(rawValue: CInt(-result))
            if code == .noSpace || code == .diskQuotaExceeded {
                let again = await transfer(memory, offset, dsync: false)
                if again != result { rememberLoss(result) }
            } else if code == .ioError {
                rememberLoss(result)
            }
        }
        guard result >= 0 else { throw error(result, "write") }
        mapping?.learn(offset, memory.count)
    }

    /// In direct mode never through the page cache alone: see `DirectAccess`.
    private func transfer(_ memory: BorrowedMemory, _ offset: UInt64, dsync: Bool) async -> Int {
        guard let direct else { return await io.write(descriptor, from: memory, at: offset, dsync: dsync, isDirect: false) }
        return await direct.write(from: memory, at: offset, dsync: dsync, by: io)
    }

    private func write(at offset: UInt64, from bytes: RawSpan, flushingAfterwards: Bool) async throws(HostError) {
        try await write(at: offset, from: bytes)
        try await flush()
    }

    /// Returns when everything written before this call is on the medium (fdatasync; F_FULLFSYNC on Darwin).
    public func flush() async throws(HostError) {
        try checkNothingLost("flush")
        // One call covers both descriptors of direct mode: the kernel keeps dirty pages and the disk's cache by file, not by opening.
        let result = await flushTurns.run {
            let result = await io.datasync(descriptor)
            // Before the next run begins: the kernel tells only one of the two, and both flushes' data may be lost.
            if result < 0 { rememberLoss(result) }
            return result
        }
        guard result >= 0 else { throw error(result, "flush") }
        try checkNothingLost("flush")
    }

    /// Fills `buffer` and returns true if that needs no waiting; otherwise returns false, with undefined bytes in `buffer`.
    public func readNow(at offset: UInt64, into buffer: inout MutableRawSpan) -> Bool {
        let memory = BorrowedMemory(&buffer)
        return attemptRead(at: offset, into: memory) == memory.count
    }

    /// Appends `count` bytes to `output` and returns true if that needs no waiting; otherwise returns false and appends nothing.
    ///
    /// - Precondition: `output` has room for them.
    public func readNow(at offset: UInt64, count: Int, into output: inout OutputRawSpan) -> Bool {
        precondition(count >= 0 && count <= output.freeCapacity, "\(count) bytes for room of \(output.freeCapacity)")
        // SAFETY: the room was checked; the kernel has initialised exactly the bytes that are then counted.
        return unsafe output.withUnsafeMutableBytes { (bytes: UnsafeMutableRawBufferPointer, initialized: inout Int) in
            let memory = unsafe BorrowedMemory(UnsafeMutableRawBufferPointer(rebasing: bytes[initialized..<initialized + count]))
            guard attemptRead(at: offset, into: memory) == count else { return false }
            initialized += count
            return true
        }
    }

    /// Writes `bytes` and returns true if that needs no waiting. After false, any part may have been written: write all of it again.
    public func writeNow(at offset: UInt64, from bytes: RawSpan) -> Bool {
        guard state.lostData.load(ordering: .relaxed) == 0 else { return false }
        guard bytes.byteCount > 0 else { return true }
        guard attemptWrite(at: offset, from: BorrowedMemory(reading: bytes)) else { return false }
        noteEnd(offset &+ UInt64(bytes.byteCount))
        return true
    }

    /// Returns the number of leading bytes that were there without waiting.
    private func attemptRead(at offset: UInt64, into memory: BorrowedMemory) -> Int {
        guard direct == nil, memory.count > 0 else { return 0 }
        if isInMemory {
            let count = max(PositionalIO.read(descriptor, into: memory, at: offset), 0)
            mapping?.learn(offset, count)
            return count
        }
        guard !lacks(.readNow) else { return 0 }
        // SAFETY: the whole lent memory.
        let result = Int(unsafe chostio_pread_now(descriptor, memory.address(0), memory.count, offset))
        if result < 0 { _ = isLack(of: .readNow, result) }
        mapping?.learn(offset, result)
        return max(result, 0)
    }

    /// Whether `count` bytes from `offset` on are in memory, so that a `GatherList` may send them from there. False where that cannot be known.
    public func isAtHand(_ offset: UInt64, _ count: Int) -> Bool {
        mapping?.isAtHand(offset, count) == true || mapping?.ask(offset, count) == true
    }

    /// Sending from memory has made somebody wait: nothing counts as at hand until it is learnt again.
    public func forgetWhatIsAtHand() {
        mapping?.forget()
    }

    /// Bytes that were at hand could not be sent.
    func distrustWhatIsAtHand() {
        mapping?.distrust()
    }

    private func attemptWrite(at offset: UInt64, from memory: BorrowedMemory) -> Bool {
        guard direct == nil, writeAtOnce(at: offset, from: memory) else { return false }
        mapping?.learn(offset, memory.count)
        return true
    }

    private func writeAtOnce(at offset: UInt64, from memory: BorrowedMemory) -> Bool {
        if isInMemory {
            return PositionalIO.write(descriptor, from: memory, at: offset, dsync: false) == 0
        }
        guard !lacks(.writeNow) else { return riskWrite(at: offset, from: memory) }
        // SAFETY: the whole lent memory, which is only read.
        let result = Int(unsafe chostio_pwrite_now(descriptor, memory.address(0), memory.count, offset))
        if result < 0 { _ = isLack(of: .writeNow, result) }
        return result == memory.count
    }

    /// Writes whole pages of a file whose system cannot promise not to wait, if it has not made anybody wait lately.
    private func riskWrite(at offset: UInt64, from memory: BorrowedMemory) -> Bool {
        // Part of a page that is not in the cache would be read from the disk first.
        guard kind == .regular, (offset | UInt64(memory.count)) % 4096 == 0 else { return false }
        let start = chostio_now()
        guard state.stalls.admits(at: start) else { return false }
        let result = PositionalIO.write(descriptor, from: memory, at: offset, dsync: false)
        state.stalls.record(start: start, end: chostio_now())
        return result == 0
    }

    @inline(never) private func endOfFile(_ end: UInt64, missing: Int) -> HostError {
        HostError(
            .ioError, "read", path: path,
            detail: "\(missing) bytes at \(end) are missing: the file had \(byteCount) bytes when it was opened and has become shorter")
    }
}
