import NBDProtocol
import QCOW2

/// How an image is opened that stands on other files, as far as the user says.
struct ChainPlan: Equatable, Sendable {
    var snapshot: SnapshotSelector?
    /// Writes go to an overlay that nobody sees and that is gone at exit.
    var isTemporary = false
    var rules = ImageRules()

    func check(_ format: ImageFormat, _ source: ExportPlan.Source) throws(ToolError) {
        if snapshot != nil, format != .qcow2 { throw .usage("--load-snapshot needs an image with internal snapshots: -f qcow2") }
        if snapshot != nil, isTemporary { throw .usage("--snapshot and --load-snapshot are mutually exclusive") }
        switch source {
        case .file, .described: break
        default: if format != .raw { throw .usage("format \(format.rawValue) needs a file") }
        }
    }

    /// Reads the value of `-l`: `snapshot.id=ID,snapshot.name=NAME`, one of the two, or a text that is either.
    static func snapshot(_ text: String) throws(ToolError) -> SnapshotSelector {
        guard text.hasPrefix("snapshot.") else {
            guard !text.isEmpty else { throw .usage("--load-snapshot: the name of the snapshot is empty") }
            return SnapshotSelector(idOrName: text)
        }
        var list = try KeyValueList(text, context: "--load-snapshot")
        let selector = SnapshotSelector(id: list.take("snapshot.id"), name: list.take("snapshot.name"))
        try list.finish()
        return selector
    }
}
