public import Block

/// A bitmap that an export may show, and what it shows.
public struct FoundBitmap: Sendable {
    public var bitmap: DirtyBitmap
    /// The bitmap's extents in the bytes of the node that was asked.
    public var source: any ExtentSource
    public var node: Node
}

extension Node {
    /// The bitmaps that this node has itself.
    public var bitmaps: [DirtyBitmap] { (device as? any BitmapOwner)?.bitmaps ?? [] }

    /// Looks for a bitmap in this node, then down through filters and backing files (S-EXP-11).
    ///
    /// - Throws: `.notFound`.
    public func findBitmap(_ name: String) throws(BitmapError) -> FoundBitmap {
        var node = self
        var offset: UInt64 = 0
        // A chain is as long as it was opened; edges only lead to nodes that were there before.
        while true {
            if let bitmap = node.bitmaps.first(where: { $0.name == name }) {
                return FoundBitmap(bitmap: bitmap, source: offset == 0 ? bitmap : WindowedExtents(bitmap, offset: offset), node: node)
            }
            guard let edge = node.edges.first(where: { $0.role == .filtered }) ?? node.edges.first(where: { $0.role == .backing }) else {
                throw BitmapError(.notFound, name, "not found in node '\(self.name)' or below it")
            }
            let sum = offset.addingReportingOverflow(edge.offset)
            guard !sum.overflow else { throw BitmapError(.invalid, name, "the window of node '\(node.name)' lies too far") }
            offset = sum.partialValue
            node = edge.node
        }
    }
}

/// How the user names a bitmap of an export.
public enum BitmapReference: Equatable, Sendable {
    /// Looked up through the chain.
    case name(String)
    /// On exactly that node (S-EXP-13).
    case onNode(String, name: String)

    var name: String {
        switch self {
        case .name(let name), .onNode(_, let name): name
        }
    }
}

/// The bitmaps of one export, busy from `take` until `release`.
public struct ExportedBitmaps: Sendable {
    /// In the order in which they were named.
    public let found: [FoundBitmap]

    /// Finds all bitmaps, checks them, and only then makes them busy, so that a failure leaves nothing behind (S-EXP-11…16).
    ///
    /// - Parameters:
    ///   - user: for messages: `export 'disk'`.
    ///   - isReadOnly: whether the export is.
    /// - Throws: `.notFound`; `.busy`, `.inconsistent`; `.enabled` on a read-only export, whose readers could not know that it changes;
    ///   `.invalid` for one that is named twice.
    public static func take(
        _ references: [BitmapReference], from node: Node, in graph: Graph, isReadOnly: Bool, user: String
    ) throws(BitmapError) -> ExportedBitmaps {
        var found: [FoundBitmap] = []
        for reference in references {
            let one: FoundBitmap
            switch reference {
            case .name(let name):
                one = try node.findBitmap(name)
                if isReadOnly, !one.node.isReadOnly, one.bitmap.isEnabled {
                    throw BitmapError(.enabled, name, "it is enabled, and \(user) is read-only: it could change under its readers")
                }
            case .onNode(let nodeName, let name):
                guard let owner = graph.node(nodeName) else { throw BitmapError(.notFound, name, "there is no node '\(nodeName)'") }
                guard let bitmap = owner.bitmaps.first(where: { $0.name == name }) else {
                    throw BitmapError(.notFound, name, "node '\(nodeName)' has none of this name")
                }
                one = FoundBitmap(bitmap: bitmap, source: bitmap, node: owner)
            }
            try one.bitmap.checkUsable()
            guard !found.contains(where: { $0.bitmap === one.bitmap || $0.bitmap.name == one.bitmap.name }) else {
                throw BitmapError(.invalid, one.bitmap.name, "\(user) names it twice")
            }
            found.append(one)
        }
        for (index, one) in found.enumerated() {
            do throws(BitmapError) {
                try one.bitmap.beginUse(by: user)
            } catch {
                for earlier in found[..<index] { earlier.bitmap.endUse() }
                throw error
            }
        }
        return ExportedBitmaps(found: found)
    }

    public func release() {
        for one in found { one.bitmap.endUse() }
    }
}
