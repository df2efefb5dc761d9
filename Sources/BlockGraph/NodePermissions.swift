/// What somebody does to a node, or lets others do (S-BLK-15).
public struct NodePermissions: OptionSet, Hashable, Sendable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// What is read is what was written last, and not something in between.
    public static let consistentRead = NodePermissions(rawValue: 1 << 0)
    public static let write = NodePermissions(rawValue: 1 << 1)
    /// Writes that change nothing that a reader sees: allocation, copying up.
    public static let writeUnchanged = NodePermissions(rawValue: 1 << 2)
    public static let resize = NodePermissions(rawValue: 1 << 3)

    public static let all: NodePermissions = [.consistentRead, .write, .writeUnchanged, .resize]

    private static let names: [(NodePermissions, String)] = [
        (.consistentRead, "consistent read"), (.write, "write"), (.writeUnchanged, "write unchanged"), (.resize, "resize"),
    ]
}

extension NodePermissions: CustomStringConvertible {
    /// "consistent read, write".
    public var description: String {
        Self.names.filter { contains($0.0) }.map(\.1).joined(separator: ", ")
    }
}

/// Who uses a node, and how.
public struct NodeUse: Sendable {
    /// For messages: `export 'disk'`, `node 'overlay' as backing`.
    public var user: String
    public var own: NodePermissions
    /// What others may do meanwhile.
    public var shared: NodePermissions

    public init(_ user: String, own: NodePermissions, shared: NodePermissions) {
        self.user = user
        self.own = own
        self.shared = shared
    }

    /// An export: nobody may resize under it (S-EXP-18).
    public static func export(_ name: String, isReadOnly: Bool) -> NodeUse {
        NodeUse(
            "export '\(name)'", own: isReadOnly ? .consistentRead : [.consistentRead, .write],
            shared: NodePermissions.all.subtracting(.resize))
    }

    /// Why the two cannot be at once, naming both; nil when they can.
    func conflict(with other: NodeUse) -> String? {
        let refused = own.subtracting(other.shared)
        if !refused.isEmpty { return "\(user) wants \(refused), which \(other.user) does not share" }
        let taken = other.own.subtracting(shared)
        if !taken.isEmpty { return "\(user) does not share \(taken), which \(other.user) has" }
        return nil
    }
}
