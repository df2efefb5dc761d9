public import Block

/// The drivers that a program has, by the names of `driver=`. The program fills it: this room knows no driver but `raw`.
public struct Drivers: Sendable {
    /// A device that a driver has opened, and the nodes it stands on.
    public struct Opened: Sendable {
        public var device: any BlockDevice
        public var edges: [Node.Edge]

        public init(_ device: any BlockDevice, edges: [Node.Edge] = []) {
            self.device = device
            self.edges = edges
        }
    }

    /// Takes its keys out of the options and opens; nodes below it opens through `Opening`, which closes them again when it throws.
    public typealias Open = @Sendable (inout NodeOptions, Opening) async throws(GraphError) -> Opened

    private var drivers: [String: Open] = [:]

    public init() {}

    public mutating func register(_ driver: String, _ open: @escaping Open) { drivers[driver] = open }

    public var names: [String] { drivers.keys.sorted() }

    func find(_ driver: String) throws(GraphError) -> Open {
        guard let open = drivers[driver] else {
            throw GraphError(.unknown, "there is no driver '\(driver)'; there are \(names.joined(separator: ", "))")
        }
        return open
    }
}

/// One chain on its way to be opened: what a driver needs to open the nodes below its own.
public final class Opening: Sendable {
    public let graph: Graph
    public let drivers: Drivers
    /// Inherited by nodes that do not say otherwise.
    public let isReadOnly: Bool
    private let depth: Int

    init(_ graph: Graph, _ drivers: Drivers, isReadOnly: Bool, depth: Int) {
        self.graph = graph
        self.drivers = drivers
        self.isReadOnly = isReadOnly
        self.depth = depth
    }

    /// Opens, or finds, the node that the options name under `key`; nil when they do not.
    ///
    /// - Parameters:
    ///   - readOnly: nil: as the node above.
    ///   - driver: what a description with `filename` and without `driver` means.
    public func child(
        _ key: String, of options: inout NodeOptions, readOnly: Bool? = nil, driver: String? = nil
    ) async throws(GraphError) -> Node? {
        guard let child = try options.takeChild(key) else { return nil }
        return try await node(child, key: options.place + key, readOnly: readOnly, driver: driver)
    }

    /// Opens, or finds, the node of a child that was taken from `key`.
    public func node(_ child: NodeOptions.Child, key: String, readOnly: Bool? = nil, driver: String? = nil) async throws(GraphError) -> Node {
        switch child {
        case .reference(let name):
            guard let node = graph.node(name) else { throw GraphError(.unknown, "\(key)=\(name): there is no such node") }
            return node
        case .options(var inner):
            if let driver { inner.setDefault(driver: driver) }
            return try await graph.open(inner, drivers, isReadOnly: readOnly ?? isReadOnly, depth: depth + 1)
        }
    }
}

extension Graph {
    /// Opens a node and all below it (see `NodeOptions`). When it throws, what it had opened is closed again.
    ///
    /// - Throws: `.unknown` for a driver or a node that does not exist, or a key that the driver does not know; what the drivers throw.
    @discardableResult
    public func open(_ options: NodeOptions, _ drivers: Drivers, isReadOnly: Bool = false) async throws(GraphError) -> Node {
        try await open(options, drivers, isReadOnly: isReadOnly, depth: 0)
    }

    func open(_ options: NodeOptions, _ drivers: Drivers, isReadOnly: Bool, depth: Int) async throws(GraphError) -> Node {
        guard depth < NodeOptions.depthLimit else {
            throw GraphError(.invalid, "more than \(NodeOptions.depthLimit) nodes stand on each other")
        }
        var options = options
        guard let driver = options.take("driver") else { throw GraphError(.invalid, "\(options.place)driver= is missing") }
        let name = options.take("node-name")
        let isReadOnly = try options.takeFlag("read-only") ?? isReadOnly
        let open = try drivers.find(driver)
        let before = Set(nodes.map(\.name))
        var opened: Drivers.Opened?
        do throws(GraphError) {
            let device = try await open(&options, Opening(self, drivers, isReadOnly: isReadOnly, depth: depth))
            opened = device
            if let key = options.keys.first { throw GraphError(.unknown, "driver '\(driver)' has no key '\(key)'") }
            return try add(name, driver: driver, device.device, edges: device.edges)
        } catch {
            if let opened { await opened.device.close() }
            // From the top: a node that another new one stands on cannot be removed first.
            for node in nodes.reversed() where !before.contains(node.name) && node.users.isEmpty { try? await remove(node.name) }
            throw error
        }
    }
}
