import Block
import BlockDrivers
import BlockGraph
import Logging
import NBDProtocol
import NBDServer

/// Opens what an `ExportPlan` names.
enum ImageOpener {
    /// - Parameter expectsProbing: Whoever gives no format is used to a program that finds out. Nothing is probed here, because a guest can
    ///   write what a probe would find: so a file that looks like an image format is an error then, and any other makes for a warning.
    /// - Throws: `.runtime` naming the file.
    static func open(_ plan: ExportPlan, in graph: Graph, expectsProbing: Bool, logger: Logger) async throws(ToolError) -> OpenedExport {
        let node: Node
        if case .node(let name) = plan.source {
            guard let found = graph.node(name) else {
                throw .runtime("export '\(plan.name.sanitized())': there is no node '\(name.sanitized())'")
            }
            node = found
        } else {
            node = try await open(plan, in: graph, expectsProbing, logger)
        }
        do {
            return try OpenedExport(plan, on: node, in: graph)
        } catch let error as BlockError {
            throw .runtime("Could not open '\(plan.sourceName)' with this offset and size: \(error.detail)")
        } catch {
            throw .runtime("export '\(plan.name.sanitized())': \(error)")
        }
    }

    private static func open(
        _ plan: ExportPlan, in graph: Graph, _ expectsProbing: Bool, _ logger: Logger
    ) async throws(ToolError) -> Node {
        let node = try await Self.node(plan, in: graph, logger)
        switch plan.source {
        case .file, .described:
            if let refusal = plan.storage.aio.refusal {
                logger.warning("\(refusal): '\(plan.sourceName)' is served by threads, not aio=\(plan.storage.aio.rawValue)")
            }
        default: break
        }
        if !plan.isFormatGiven, case .file(let path) = plan.source {
            try await checkFormat(of: node.device, plan, path, expectsProbing, logger)
        }
        return plan.chain.isTemporary ? try await TemporaryOverlay.add(over: node, to: graph) : node
    }

    private static func checkFormat(
        of device: any BlockDevice, _ plan: ExportPlan, _ name: String, _ expectsProbing: Bool, _ logger: Logger
    ) async throws(ToolError) {
        guard let format = await FormatGuard.format(of: device), plan.offset == 0 else {
            if expectsProbing { logger.warning("the format of '\(name)' was not specified: it is served as raw; -f raw silences this") }
            return
        }
        guard !expectsProbing else {
            let hint = ImageFormat(rawValue: format) == nil ? "which is not supported" : "and no format was given; -f \(format) serves the disk in it"
            throw .runtime("'\(name)' looks like a \(format) image, \(hint); -f raw serves the bytes of the file as they are")
        }
        logger.warning("'\(name)' looks like a \(format) image; the bytes of the file are served as they are")
    }

    private static func node(_ plan: ExportPlan, in graph: Graph, _ logger: Logger) async throws(ToolError) -> Node {
        let report = { @Sendable (problem: String) in logger.error("\(problem.sanitized(limit: 400))") }
        let isReadOnly = plan.isReadOnly || plan.chain.isTemporary
        var storage = plan.storage
        storage.isReadOnly = isReadOnly || plan.chain.snapshot != nil
        do {
            switch plan.source {
            case .file(let path) where plan.format == .qcow2:
                let chain = try await ImageChain.open(path, .qcow2, plan.chain.rules, storage)
                let image = try await chain.add(to: graph, snapshot: plan.chain.snapshot, report: report)
                guard storage.detectZeroes != .off, !storage.isReadOnly else { return image }
                let filter = DetectZeroes(image.face, mayUnmap: storage.detectZeroes == .unmap)
                return try graph.add(driver: "detect-zeroes", filter, edges: [Node.Edge(.filtered, image)])
            case .file(let path): return try graph.add(driver: "file", try await openRaw(path, storage))
            case .memory(let byteCount): return try graph.add(driver: "memory", MemoryDevice(byteCount: byteCount))
            case .null(let byteCount): return try graph.add(driver: "null", NullDevice(byteCount: byteCount))
            case .pattern(let byteCount): return try graph.add(driver: "pattern", PatternDevice(byteCount: byteCount))
            case .described(let options, _):
                let drivers = ToolDrivers.all(plan.storage, plan.chain.rules, snapshot: plan.chain.snapshot, report: report)
                return try await graph.open(options, drivers, isReadOnly: storage.isReadOnly)
            case .node(let name): throw ToolError.runtime("node '\(name)' is open")
            }
        } catch {
            throw (error as? ToolError) ?? .runtime("\(error)")
        }
    }
}

/// An export on its node of the graph, with what it shows of it.
struct OpenedExport {
    let export: Export
    private let node: Node
    private let bitmaps: ExportedBitmaps

    /// Puts what the plan asks for on the node: a window, a tracker; finds the bitmaps.
    init(_ plan: ExportPlan, on base: Node, in graph: Graph) throws {
        var node = base
        if plan.offset > 0 || plan.byteCount != nil {
            let window = try RawWindow(node.face, offset: plan.offset, byteCount: plan.byteCount)
            node = try graph.add(driver: "raw", window, edges: [Node.Edge(.filtered, node, offset: plan.offset)])
        }
        if !plan.contexts.tracks.isEmpty {
            if node.isReadOnly { throw BitmapError(.readOnly, plan.contexts.tracks[0].name, "nothing can be tracked: the image is read-only") }
            let tracker = BitmapTracker(node.face)
            for track in plan.contexts.tracks { try tracker.addBitmap(track.name, granularity: track.granularity) }
            node = try graph.add(driver: "track", tracker, edges: [Node.Edge(.filtered, node)])
        }
        let device = node.face
        bitmaps = try ExportedBitmaps.take(
            (plan.contexts.bitmaps + plan.contexts.tracks.map(\.name)).map { BitmapReference.name($0) }, from: node, in: graph,
            isReadOnly: plan.isReadOnly, user: "export '\(plan.name.sanitized())'")
        var contexts = plan.contexts.showsAllocationDepth ? [ExportContext.allocationDepth(of: device)] : []
        contexts += bitmaps.found.map { .dirtyBitmap($0.bitmap.name, $0.source) }
        var export = Export(
            name: plan.name, description: plan.description, device: device, isReadOnly: plan.isReadOnly, contexts: contexts)
        export.requiresTLS = plan.requiresTLS
        self.export = export
        self.node = node
    }

    /// Makes the export a user of its node, whom others must respect.
    ///
    /// - Throws: `.runtime` naming the two who cannot be at once.
    func attach(_ server: NBDServer, in graph: Graph) throws(ToolError) {
        do throws(GraphError) {
            let isReadOnly = export.isReadOnly || node.isReadOnly
            _ = try graph.attach(
                .export(export.name.sanitized(), isReadOnly: isReadOnly), to: node, source: server.requestSource(ofExport: export.name))
        } catch {
            throw .runtime("\(error)")
        }
    }
}
