public import Block
import HostIO

extension NBDServer {
    /// What pauses and resumes the clients of an export, for those who need its device to themselves (`Graph.withDrained`); nil when there
    /// is no such export. Clients stay connected, and notice nothing but the wait.
    public func requestSource(ofExport name: String) -> (any RequestSource)? { registry.find(name)?.gate }

    /// Event loops that plain connections can live on (`move`).
    public var loopCount: Int { fastLoops.count }

    /// Moves the clients of an export to another event loop while they are connected and busy: paused, taken from their loop, put on the
    /// new one, resumed (S-DRN-06, S-BLK-16).
    ///
    /// - Parameter number: 0 ..< `loopCount`; others move nobody.
    /// - Returns: how many have moved: connections of another kind (encrypted ones) stay where they are, and so do those that are there
    ///   already.
    @discardableResult
    public func move(export name: String, toLoop number: Int) async -> Int {
        guard let gate = registry.find(name)?.gate, fastLoops.indices.contains(number) else { return 0 }
        await gate.pause()
        defer { gate.resume() }
        return await gate.move(toLoop: number)
    }
}
