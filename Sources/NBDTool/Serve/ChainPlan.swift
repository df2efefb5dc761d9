import BlockDrivers
import NBDProtocol
import QCOW2

/// How an image is opened that stands on other files, as far as the user says.
struct ChainPlan: Equatable, Sendable {
    struct File: Equatable, Sendable {
        var path: String
        var format: ImageFormat
    }

    var snapshot: SnapshotSelector?
    /// Writes go to an overlay that nobody sees and that is gone at exit.
    var isTemporary = false
    /// Where else than beside the image that names them backing and data files may lie.
    var allowedDirectories: [String] = []
    /// Look what a backing file is when the image that names it does not say.
    var probesBackingFormat = false
    /// Named by the user, not by the image: may lie anywhere.
    var backing: File?
    var dataFile: String?

    func check(_ format: ImageFormat, _ source: ExportPlan.Source) throws(ToolError) {
        if snapshot != nil, format != .qcow2 { throw .usage("--load-snapshot needs an image with internal snapshots: -f qcow2") }
        if snapshot != nil, isTemporary { throw .usage("--snapshot and --load-snapshot are mutually exclusive") }
        guard case .file = source else {
            if format != .raw { throw .usage("format \(format.rawValue) needs a file") }
            return
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

extension ExportPlan {
    /// Reads `driver=qcow2,file.filename=…[,backing.…][,data-file.…]` of `--image-opts`, without the driver.
    init(qcow2 list: inout KeyValueList, defaults: RawOptions, readOnly: Bool) throws(ToolError) {
        self.init(source: .file(try Self.takeFile("file", from: &list)))
        format = .qcow2
        isFormatGiven = true
        isReadOnly = try list.takeSwitch("read-only") ?? readOnly
        storage = defaults
        try storage.apply(
            discard: list.take("discard"), detectZeroes: list.take("detect-zeroes"), aio: list.take("file.aio"),
            spell: { "--image-opts \($0)" })
        storage.isLocked = try list.takeSwitch("file.locking") ?? storage.isLocked
        if let driver = list.take("backing.driver") {
            guard let format = driver == "file" || driver == "host_device" ? .raw : ImageFormat(rawValue: driver) else {
                throw .usage("--image-opts: backing.driver '\(driver.sanitized())' is not supported: only raw, qcow2, file and host_device are")
            }
            let isBare = driver == "file" || driver == "host_device"
            let path = isBare ? list.take("backing.filename") : try Self.takeFile("backing.file", from: &list)
            guard let path, !path.isEmpty else { throw .usage("--image-opts: 'backing.filename' is missing") }
            chain.backing = ChainPlan.File(path: path, format: format)
        }
        if let driver = list.take("data-file.driver"), driver != "file" && driver != "host_device" {
            throw .usage("--image-opts: data-file.driver '\(driver.sanitized())' is not supported: only file and host_device are")
        }
        chain.dataFile = list.take("data-file.filename")
        try list.finish()
        try check()
    }

    private static func takeFile(_ key: String, from list: inout KeyValueList) throws(ToolError) -> String {
        if let driver = list.take("\(key).driver"), driver != "file" && driver != "host_device" {
            throw .usage("--image-opts: \(key).driver '\(driver.sanitized())' is not supported: only file and host_device are")
        }
        guard let path = list.take("\(key).filename"), !path.isEmpty else { throw .usage("--image-opts: '\(key).filename' is missing") }
        return path
    }
}
