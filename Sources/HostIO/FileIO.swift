/// Where calls that may wait for a disk are made, so that nobody else waits with them.
///
/// Results are 0 or more, or a negated errno. `read` gives fewer bytes than asked only at the end of the file. `isDirect` says that the
/// descriptor goes past the page cache, so that starting a transfer copies nothing and takes no time; results do not depend on it.
protocol FileIO: AnyObject, Sendable {
    func read(_ descriptor: Int32, into memory: BorrowedMemory, at offset: UInt64, isDirect: Bool) async -> Int
    func write(_ descriptor: Int32, from memory: BorrowedMemory, at offset: UInt64, dsync: Bool, isDirect: Bool) async -> Int
    func datasync(_ descriptor: Int32) async -> Int
    /// Begins a short read on the loop that the caller runs on, and calls `done` there: see `HostLoop.read`. False where that cannot be done.
    func beginRead(_ descriptor: Int32, _ count: Int, at offset: UInt64, then done: @escaping @Sendable (BorrowedMemory?) -> Void) -> Bool
    /// Runs `work`, which may block, on a thread that may be blocked.
    func submit(_ work: @escaping @Sendable () -> Void)
}

extension FileIO {
    func beginRead(_ descriptor: Int32, _ count: Int, at offset: UInt64, then done: @escaping @Sendable (BorrowedMemory?) -> Void) -> Bool { false }

    /// Runs `body`, which may block, elsewhere, and returns what it returns.
    func call<Result: Sendable>(_ body: @escaping @Sendable () -> Result) async -> Result {
        await withCheckedContinuation { continuation in
            submit { continuation.resume(returning: body()) }
        }
    }
}
