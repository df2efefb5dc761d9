internal import Synchronization

// What one loop does for another: with a single client at work, the other cores have nothing to do.
extension HostLoop {
    /// Helps no other loop: they go together from both ends. Nil for the one in the middle, and for one that is not of `all`.
    var opposite: HostLoop? {
        guard let index = Self.all.firstIndex(where: { $0 === self }) else { return nil }
        let loop = Self.all[Self.all.count - 1 - index]
        return loop === self ? nil : loop
    }

    /// Another loop has time for what this one hands over: it serves nobody.
    public var hasHelp: Bool { helper?.isServing.load(ordering: .relaxed) == false }

    /// Has `work` done by the helper of the loop that the caller runs on, and passes its result to `done` on the latter, soon. Until then the loop sleeps
    /// when it has nothing to do. Returns false when there is no help, or no such loop: nothing happens then.
    ///
    /// - Parameter work: never waits.
    public static func handOver<Result: Sendable>(
        _ work: @escaping @Sendable () -> Result, then done: @escaping @Sendable (Result) -> Void
    ) -> Bool {
        guard let loop = current, loop.hasHelp, let helper = loop.helper else { return false }
        loop.handedOverCount += 1
        helper.execute {
            let result = work()
            loop.execute {
                loop.handedOverCount -= 1
                done(result)
            }
        }
        return true
    }
}
