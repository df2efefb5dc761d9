// Files by the ring of a loop: for tasks, and for the loop itself.
extension HostLoop {
    /// Lends the call's memory to the kernel until it returns.
    ///
    /// Only the loop submits: the kernel ties a submission to its thread, and interrupts that thread's system calls to complete it.
    func run(_ call: RingCall) async -> RingSlots.Outcome {
        guard ringRefusal == nil else { return .unfinished(call) }
        return await withCheckedContinuation { continuation in
            let pending = RingSlots.Pending(call: call) { continuation.resume(returning: $0) }
            if isCurrent {
                ring?.add(pending)
            } else {
                execute { self.ring?.add(pending) }
            }
        }
    }

    /// Reads into memory of this loop and calls `done` on it, with what was read, or nil where that has to be done without the ring. Returns
    /// false when there is no ring or no memory: nothing is read then.
    ///
    /// - Precondition: called on the loop; `count` is at most `RingMemory.blockByteCount`.
    func read(_ descriptor: Int32, _ count: Int, at offset: UInt64, then done: @escaping @Sendable (BorrowedMemory?) -> Void) -> Bool {
        precondition(isCurrent)
        guard ringRefusal == nil, let block = readMemory.take() else { return false }
        let memory = block.part(0, count)
        ring?.add(
            RingSlots.Pending(call: RingCall(.read, descriptor, memory, at: offset)) { [self] outcome in
                if case .finished(count) = outcome { done(memory) } else { done(nil) }
                readMemory.give(block)
            })
        return true
    }

    /// Tells whose calls have ended. Returns whether there were any: they may have added others.
    func endCalls() -> Bool {
        ring?.takeEnded(into: &endedCalls)
        guard !endedCalls.isEmpty else { return false }
        for call in endedCalls { call.done(call.outcome) }
        endedCalls.removeAll(keepingCapacity: true)
        return true
    }
}
