public import Block
internal import Synchronization

/// All nodes of a process, by name, and who uses them.
///
///     export 'disk' ──► overlay (qcow2) ──file──► #block001 (file)
///                            └──backing──► base (raw) ──filtered──► #block000 (file)
///
/// Arrows are uses with permissions; one that conflicts with another is an error when it is made, not when the damage is done (S-BLK-15).
public final class Graph: Sendable {
    private struct State {
        var nodes: [String: Node] = [:]
        var names: [String] = []
        var nextAnonymous = 0
        var nextUse: UInt64 = 1
    }

    private let state = Mutex(State())

    public init() {}

    public func node(_ name: String) -> Node? { state.withLock { $0.nodes[name] } }

    /// In the order of their creation.
    public var nodes: [Node] { state.withLock { state in state.names.compactMap { state.nodes[$0] } } }

    /// Makes a node of a device that is open.
    ///
    /// - Parameter name: nil for one that the graph makes up. Else a letter or `_` first, then letters, digits, `-`, `.`, `_`; at most 31
    ///   characters (as QEMU has it).
    /// - Throws: `.invalid` for a name that is taken or impossible; `.conflict` when a node below is used in another way. Then the device is
    ///   still the caller's to close.
    @discardableResult
    public func add(_ name: String? = nil, driver: String, _ device: any BlockDevice, edges: [Node.Edge] = []) throws(GraphError) -> Node {
        if let name, !Self.isWellFormed(name) {
            throw GraphError(.invalid, "'\(name)' is no name for a node: 1 to 31 letters, digits and -._, a letter first")
        }
        let node = try state.withLock { state throws(GraphError) -> Node in
            let chosen: String
            if let name {
                chosen = name
            } else {
                let digits = String(state.nextAnonymous)
                state.nextAnonymous += 1
                chosen = "#block" + String(repeating: "0", count: max(0, 3 - digits.count)) + digits
            }
            guard state.nodes[chosen] == nil else { throw GraphError(.invalid, "there is a node '\(chosen)' already") }
            let node = Node(name: chosen, driver: driver, device: device, edges: edges, firstUse: state.nextUse)
            state.nodes[chosen] = node
            state.names.append(chosen)
            state.nextUse += UInt64(edges.count)
            return node
        }
        var done = 0
        do throws(GraphError) {
            for (index, edge) in edges.enumerated() {
                try edge.node.attach(
                    node.firstUse + UInt64(index), Node.Attached(use: node.use(of: edge), source: nil, parent: Node.WeakNode(node: node)))
                done += 1
            }
        } catch {
            for index in 0..<done { edges[index].node.detach(node.firstUse + UInt64(index)) }
            forget(node)
            throw error
        }
        return node
    }

    private static func isWellFormed(_ name: String) -> Bool {
        let bytes = Array(name.utf8)
        let letters: (UInt8) -> Bool = { ($0 | 0x20) >= UInt8(ascii: "a") && ($0 | 0x20) <= UInt8(ascii: "z") || $0 == UInt8(ascii: "_") }
        guard let first = bytes.first, bytes.count <= 31, letters(first) else { return false }
        return bytes.allSatisfy { byte in
            letters(byte) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) || byte == UInt8(ascii: "-") || byte == UInt8(ascii: ".")
        }
    }

    private func forget(_ node: Node) {
        state.withLock { state in
            state.nodes[node.name] = nil
            state.names.removeAll { $0 == node.name }
        }
    }

    /// Takes a node out and closes its device; then nodes below it that have no name of their own and no other user.
    ///
    /// - Throws: `.unknown`; `.inUse`, naming a user.
    public func remove(_ name: String) async throws(GraphError) {
        guard let node = node(name) else { throw GraphError(.unknown, "there is no node '\(name)'") }
        if let user = node.users.first { throw GraphError(.inUse, "node '\(name)' is in use by \(user.user)") }
        forget(node)
        for (index, edge) in node.edges.enumerated() { edge.node.detach(node.firstUse + UInt64(index)) }
        await node.device.close()
        for edge in node.edges where edge.node.name.hasPrefix("#") && edge.node.users.isEmpty && self.node(edge.node.name) === edge.node {
            try await remove(edge.node.name)
        }
    }

    /// Closes all devices, from the top: what stands on others goes first. Afterwards the nodes are there, but of no use.
    public func close() async {
        for node in nodes.reversed() { await node.device.close() }
    }

    /// Makes somebody a user of a node, until `detach`.
    ///
    /// - Parameter source: who is paused when the node, or one below it, is drained.
    /// - Throws: `.conflict`, naming both users.
    public func attach(_ use: NodeUse, to node: Node, source: (any RequestSource)? = nil) throws(GraphError) -> Attachment {
        let id = state.withLock { state in
            defer { state.nextUse += 1 }
            return state.nextUse
        }
        try node.attach(id, Node.Attached(use: use, source: source, parent: nil))
        return Attachment(node: node, id: id)
    }

    /// Lets `body` have a node to itself: everybody who sends requests to it, directly or through nodes above, is paused until `body` has
    /// returned (S-DRN-01…05). Nests.
    public func withDrained<Result, Failure>(
        _ node: Node, _ body: () async throws(Failure) -> Result
    ) async throws(Failure) -> Result {
        let sources = node.sources()
        await withTaskGroup(of: Void.self) { group in
            for source in sources { group.addTask { await source.pause() } }
        }
        defer { for source in sources { source.resume() } }
        return try await body()
    }
}

/// Somebody's use of a node.
public struct Attachment: Sendable {
    public let node: Node
    let id: UInt64

    public func detach() { node.detach(id) }
}
