/// Where calls that may wait for a disk are made, so that nobody else waits with them.
///
/// Results are 0 or more, or a negated errno. `read` gives fewer bytes than asked only at the end of the file. `isDirect` says that the
/// descriptor goes past the page cache, so that starting a transfer copies nothing and takes no time; results do not depend on it.
protocol FileIO: AnyObject, Sendable {
    func read(_ descriptor: Int32, into memory: BorrowedMemory, at offset: UInt64, isDirect: Bool) async -> Int
    func write(_ descriptor: Int32, from memory: BorrowedMemory, at offset: UInt64, dsync: Bool, isDirect: Bool) async -> Int
    func datasync(_ descriptor: Int32) async -> Int
    /// Runs `work`, which may block, on a thread that may be blocked.
    func submit(_ work: @escaping @Sendable () -> Void)
}

extension FileIO {
    /// Runs `body`, which may block, elsewhere, and returns what it returns.
    func call<Result: Sendable>(_ body: @escaping @Sendable () -> Result) async -> Result {
        await withCheckedContinuation { continuation in
            submit { continuation.resume(returning: body()) }
        }
    }
}
