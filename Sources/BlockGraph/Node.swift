public import Block
internal import Synchronization

/// A device with a name, the nodes it stands on, and the users above it.
public final class Node: Sendable {
    /// How a node uses one below it.
    public enum Role: String, Sendable {
        /// The bytes that a format interprets.
        case file
        /// What shows through where an image has nothing of its own.
        case backing
        /// Guest data outside of the image.
        case dataFile = "data-file"
        /// The same bytes as the node's, perhaps a part of them.
        case filtered
    }

    public struct Edge: Sendable {
        public var role: Role
        public var node: Node
        /// Of the upper node's first byte in the lower one; 0 but for windows.
        public var offset: UInt64

        public init(_ role: Role, _ node: Node, offset: UInt64 = 0) {
            self.role = role
            self.node = node
            self.offset = offset
        }
    }

    /// Unique in its graph.
    public let name: String
    /// As in `driver=`.
    public let driver: String
    public let device: any BlockDevice
    public let edges: [Edge]
    /// By which the nodes below know our uses of them: one number for each edge, in order.
    let firstUse: UInt64
    private let uses = Mutex<[UInt64: Attached]>([:])

    struct Attached: Sendable {
        var use: NodeUse
        var source: (any RequestSource)?
        /// The node that uses this one, if it is a node.
        var parent: WeakNode?
    }

    struct WeakNode: Sendable {
        weak let node: Node?
    }

    init(name: String, driver: String, device: any BlockDevice, edges: [Edge], firstUse: UInt64) {
        self.name = name
        self.driver = driver
        self.device = device
        self.edges = edges
        self.firstUse = firstUse
    }

    public var isReadOnly: Bool { device.info.isReadOnly }

    /// Who uses the node, in no order.
    public var users: [NodeUse] { uses.withLock { $0.values.map(\.use) } }

    /// - Throws: `.conflict`, naming both users.
    func attach(_ id: UInt64, _ attached: Attached) throws(GraphError) {
        try uses.withLock { uses throws(GraphError) in
            for (_, other) in uses.sorted(by: { $0.key < $1.key }) {
                if let conflict = attached.use.conflict(with: other.use) { throw GraphError(.conflict, "node '\(name)': \(conflict)") }
            }
            uses[id] = attached
        }
    }

    func detach(_ id: UInt64) { uses.withLock { _ = $0.removeValue(forKey: id) } }

    /// Whoever sends requests that may reach this node: its own users', and those of the nodes above it.
    func sources() -> [any RequestSource] {
        var found: [ObjectIdentifier: any RequestSource] = [:]
        var seen: Set<ObjectIdentifier> = []
        var rest = [self]
        while let node = rest.popLast() {
            guard seen.insert(ObjectIdentifier(node)).inserted else { continue }
            for attached in node.uses.withLock({ Array($0.values) }) {
                if let source = attached.source { found[ObjectIdentifier(source)] = source }
                if let parent = attached.parent?.node { rest.append(parent) }
            }
        }
        return Array(found.values)
    }

    /// How this node uses the one below an edge.
    func use(of edge: Edge) -> NodeUse {
        let user = "node '\(name)' as its \(edge.role.rawValue)"
        let mayWrite = !isReadOnly
        switch edge.role {
        case .file, .dataFile:
            // A format knows where its bytes lie; a stranger's write would break them.
            return NodeUse(user, own: mayWrite ? [.consistentRead, .write, .resize] : .consistentRead, shared: [.consistentRead, .writeUnchanged])
        case .backing:
            return NodeUse(user, own: .consistentRead, shared: [.consistentRead, .writeUnchanged])
        case .filtered:
            return NodeUse(
                user, own: mayWrite ? [.consistentRead, .write] : .consistentRead, shared: NodePermissions.all.subtracting(.resize))
        }
    }
}

/// Why the graph is not changed.
public struct GraphError: Error, Equatable, Sendable, CustomStringConvertible {
    public enum Reason: Equatable, Sendable {
        /// A node, driver or key that does not exist.
        case unknown
        /// A name that is taken or impossible, a value that makes no sense.
        case invalid
        /// Two users who cannot be at once.
        case conflict
        /// Still in use.
        case inUse
        /// The driver could not open it.
        case cannotOpen
    }

    public var reason: Reason
    public var description: String

    public init(_ reason: Reason, _ description: String) {
        self.reason = reason
        self.description = description
    }
}
