/// One connection's share of the process' memory budget.
///
/// Takes bytes from the budget in quanta, so that a busy connection seldom asks, and gives back what it no longer needs.
struct MemoryLease {
    /// Bytes moved between the budget and a lease at a time.
    static let quantum = 256 << 10

    enum Answer { case granted, waitForOwn, waitForBudget }

    let budget: MemoryBudget
    /// Most bytes this connection may hold. One request is always admitted, however large.
    let byteCountLimit: Int
    /// Called when a wait has ended, from any thread.
    let wake: @Sendable () -> Void
    /// Bytes in use by this connection.
    private(set) var used = 0
    private var leased = 0
    private var pending: (ticket: MemoryBudget.Ticket, byteCount: Int)?

    init(budget: MemoryBudget, byteCountLimit: Int, wake: @escaping @Sendable () -> Void) {
        self.budget = budget
        self.byteCountLimit = byteCountLimit
        self.wake = wake
    }

    var holdsMemory: Bool { leased > 0 }

    /// Asks for bytes. After `.waitForOwn`, ask again when some of the connection's own bytes were released; after `.waitForBudget`,
    /// when `wake` was called.
    mutating func take(_ byteCount: Int) -> Answer {
        guard byteCount > 0 else { return .granted }
        if used > 0, used + byteCount > byteCountLimit { return .waitForOwn }
        guard pending == nil else { return .waitForBudget }
        let missing = used + byteCount - leased
        if missing > 0 {
            let wanted = (missing + Self.quantum - 1) / Self.quantum * Self.quantum
            if budget.reserve(wanted) {
                leased += wanted
            } else if used + byteCount <= Self.quantum {
                // A little for everybody: small requests never queue behind those who hoard.
                budget.take(missing)
                leased += missing
            } else {
                pending = (budget.wait(for: wanted, granted: wake), wanted)
                return .waitForBudget
            }
        }
        used += byteCount
        return .granted
    }

    /// `wake` was called: what was waited for is here.
    mutating func collect() {
        guard let pending else { return }
        leased += pending.byteCount
        self.pending = nil
    }

    /// Accounts for bytes that exist already.
    mutating func charge(_ byteCount: Int) {
        used += byteCount
        if used > leased {
            budget.take(used - leased)
            leased = used
        }
    }

    mutating func release(_ byteCount: Int) {
        used -= byteCount
        precondition(used >= 0, "released more than was taken")
        let keep = used == 0 ? 0 : used + Self.quantum
        guard leased > keep, used == 0 || leased - keep >= 4 * Self.quantum else { return }
        budget.release(leased - keep)
        leased = keep
    }

    /// The connection is gone: everything goes back.
    mutating func end() {
        if let pending, !budget.cancel(pending.ticket) { leased += pending.byteCount }
        pending = nil
        if leased > 0 { budget.release(leased) }
        leased = 0
        used = 0
    }
}
