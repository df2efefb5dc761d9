import Synchronization

/// Bytes that all connections of a process may hold together: payloads being collected, requests being carried out, replies not sent yet.
///
/// First come, first served: a large request is not starved by small ones. Who does not get its bytes stops reading from its client. Only
/// the first 256 KiB of each connection are beyond the limit if need be, so that nobody is stopped altogether.
public final class MemoryBudget: Sendable {
    /// Names a wait, so that it can be given up.
    public struct Ticket: Equatable, Sendable { let number: UInt64 }

    private struct Waiter {
        var ticket: Ticket
        var byteCount: Int
        var granted: @Sendable () -> Void
    }

    private struct State {
        var used = 0
        var nextTicket: UInt64 = 0
        var waiters: [Waiter] = []
    }

    /// Bytes; at least two of the largest requests fit.
    public let byteCountLimit: Int
    private let state = Mutex(State())
    private let ranOut: (@Sendable () -> Void)?

    /// - Parameters:
    ///   - byteCountLimit: raised to 80 MiB if lower, since the largest request must fit with its reply.
    ///   - ranOut: called, from any thread, each time somebody has to wait while nobody did before.
    public init(byteCountLimit: Int, ranOut: (@Sendable () -> Void)? = nil) {
        self.ranOut = ranOut
        self.byteCountLimit = max(byteCountLimit, 80 << 20)
    }

    /// Bytes that are held now.
    public var used: Int { state.withLock { $0.used } }

    /// Somebody waits: who holds bytes without making progress is in the way.
    public var isContended: Bool { state.withLock { !$0.waiters.isEmpty } }

    func reserve(_ byteCount: Int) -> Bool {
        state.withLock { state in
            guard state.waiters.isEmpty, state.used + byteCount <= byteCountLimit else { return false }
            state.used += byteCount
            return true
        }
    }

    /// Takes bytes whether they are there or not: for what is held already, such as the headers of replies.
    func take(_ byteCount: Int) {
        state.withLock { $0.used += byteCount }
    }

    /// Queues up for bytes. `granted` is called once they are reserved, from any thread, perhaps before this returns.
    func wait(for byteCount: Int, granted: @escaping @Sendable () -> Void) -> Ticket {
        let (ticket, ready, isFirst) = state.withLock { state in
            let ticket = Ticket(number: state.nextTicket)
            let isFirst = state.waiters.isEmpty
            state.nextTicket += 1
            state.waiters.append(Waiter(ticket: ticket, byteCount: min(byteCount, byteCountLimit), granted: granted))
            let ready = serve(&state)
            return (ticket, ready, isFirst && !state.waiters.isEmpty)
        }
        for waiter in ready { waiter.granted() }
        if isFirst { ranOut?() }
        return ticket
    }

    /// Gives up a wait. Returns false when it was granted already: the bytes are the caller's, to be released.
    func cancel(_ ticket: Ticket) -> Bool {
        let (found, ready) = state.withLock { state -> (Bool, [Waiter]) in
            guard let index = state.waiters.firstIndex(where: { $0.ticket == ticket }) else { return (false, []) }
            state.waiters.remove(at: index)
            return (true, serve(&state))
        }
        for waiter in ready { waiter.granted() }
        return found
    }

    func release(_ byteCount: Int) {
        let ready = state.withLock { state in
            state.used -= byteCount
            return serve(&state)
        }
        for waiter in ready { waiter.granted() }
    }

    private func serve(_ state: inout sending State) -> [Waiter] {
        var ready: [Waiter] = []
        while let first = state.waiters.first, state.used + first.byteCount <= byteCountLimit {
            state.used += first.byteCount
            ready.append(state.waiters.removeFirst())
        }
        return ready
    }
}
