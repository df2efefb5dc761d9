import Block
import BlockDrivers
import BlockGraph
import QCOW2

/// `driver=qcow2` of `--blockdev` and `--image-opts`, with QEMU's keys:
///
///     driver=qcow2,file.filename=/srv/top.qcow2                          all else as the image says, where the rules allow it
///     driver=qcow2,file=NODE,backing=NODE,data-file=NODE                 nodes that are there, or described in place
///     driver=qcow2,file.filename=/srv/top.qcow2,backing=                 nothing below: what the image does not have reads as zeroes
struct QCOW2Driver: Sendable {
    private let defaults: RawOptions
    private let rules: ImageRules
    private let snapshot: SnapshotSelector?
    private let report: @Sendable (String) -> Void

    /// - Parameter report: is told what goes wrong later and cannot be answered to anybody.
    init(_ defaults: RawOptions, _ rules: ImageRules, snapshot: SnapshotSelector?, report: @escaping @Sendable (String) -> Void) {
        self.defaults = defaults
        self.report = report
        self.rules = rules
        self.snapshot = snapshot
    }

    func open(_ options: inout NodeOptions, _ opening: Opening) async throws(GraphError) -> Drivers.Opened {
        let place = options.place
        var storage = defaults
        storage.isReadOnly = opening.isReadOnly
        do throws(ToolError) {
            try storage.apply(discard: options.take("discard"), detectZeroes: options.take("detect-zeroes"), spell: { place + $0 })
            try storage.check()
        } catch {
            throw GraphError(.invalid, error.message)
        }
        guard let file = try await opening.child("file", of: &options, driver: "file") else {
            throw GraphError(.invalid, "driver 'qcow2' needs \(place)file=NODE or \(place)file.driver=")
        }
        let name = Self.rawFile(file.device)?.path
        let label = name ?? "node '\(file.name)'"
        var edges = [Node.Edge(.file, file)]
        do {
            try await Self.rawFile(below: file)?.lockAsImage()
            let header = try await ImageHeader.read(from: file.face)
            if let node = try await opening.child("data-file", of: &options, driver: "file") {
                edges.append(Node.Edge(.dataFile, node))
            } else if header.hasDataFile, let data = try rules.dataFile(of: header, at: try named(name, file, place + "data-file")) {
                let opened = try await OpenedImage.open(data.path, .raw, storage.ofImageFile(isReadOnly: storage.isReadOnly))
                edges.append(Node.Edge(.dataFile, try opening.graph.add(driver: "file", opened.file)))
            }
            if let node = try await backing(of: header, name, file, &options, opening, storage) { edges.append(Node.Edge(.backing, node)) }
            var imageOptions = QCOW2Image.Options(storage, isReadOnly: storage.isReadOnly, snapshot: snapshot)
            imageOptions.report = { [report] in report("\(name.map { "'\($0)'" } ?? label): \($0)") }
            let image = try await QCOW2Image.open(header, on: edges, imageOptions)
            guard storage.detectZeroes != .off, !storage.isReadOnly else { return Drivers.Opened(image, edges: edges) }
            return Drivers.Opened(DetectZeroes(image, mayUnmap: storage.detectZeroes == .unmap), edges: edges)
        } catch let error as BlockError {
            throw GraphError(.cannotOpen, "Could not open '\(label)': \(error.detail)")
        } catch let error as ToolError {
            throw GraphError(.cannotOpen, error.message)
        } catch {
            throw (error as? GraphError) ?? GraphError(.cannotOpen, "\(error)")
        }
    }

    /// The node below the image: given, or what the image names; nil when there is none, or shall be none.
    private func backing(
        of header: ImageHeader, _ name: String?, _ file: Node, _ options: inout NodeOptions, _ opening: Opening, _ storage: RawOptions
    ) async throws -> Node? {
        switch try options.takeChild("backing") {
        // QEMU's way to write JSON's null among keys with dots.
        case .reference(""): return nil
        case .some(let child): return try await opening.node(child, key: "\(options.place)backing", readOnly: true)
        case nil:
            guard let below = header.backingFileName, !below.isEmpty else { return nil }
            let path = try named(name, file, options.place + "backing")
            return try await ImageChain.open(below: header, at: path, rules, storage)?.add(to: opening.graph, report: report)
        }
    }

    /// Where the image lies, beside which the files are that it names.
    private func named(_ path: String?, _ file: Node, _ key: String) throws(GraphError) -> String {
        guard let path else {
            throw GraphError(.invalid, "the image in node '\(file.name)' names a file, and the node is none beside which it could lie: \(key)= is needed")
        }
        return path
    }

    /// The file that a node is, or stands on.
    private static func rawFile(below node: Node) -> RawFile? {
        if let file = rawFile(node.device) { return file }
        for edge in node.edges {
            if let file = rawFile(below: edge.node) { return file }
        }
        return nil
    }

    private static func rawFile(_ device: any BlockDevice) -> RawFile? {
        (device as? DetectZeroes).map { rawFile($0.device) } ?? device as? RawFile
    }
}
