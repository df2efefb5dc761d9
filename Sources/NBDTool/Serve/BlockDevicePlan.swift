import BlockDrivers
import BlockGraph
import Logging
import NBDProtocol

/// One `--blockdev`: a node to open, with all below it. Checked as far as that goes without opening.
struct BlockDevicePlan: Equatable, Sendable {
    var options: NodeOptions
    /// How files are opened when the keys do not say.
    var defaults: RawOptions
    var isReadOnly: Bool
    var rules: ImageRules

    /// - Parameter text: `driver=raw,node-name=disk,file.driver=file,file.filename=PATH`.
    /// - Throws: `.usage` for a node without a name or a driver, and keys that are malformed or given twice.
    init(parsing text: String, _ options: ServeOptions) throws(ToolError) {
        let list = try KeyValueList(text, context: "--blockdev")
        let pairs = list.pairs
        for key in ["driver", "node-name"] where !pairs.contains(where: { $0.key == key }) {
            throw .usage("--blockdev: '\(key)' is missing in '\(text.sanitized())'")
        }
        do throws(GraphError) {
            self.options = try NodeOptions(pairs)
        } catch {
            throw .usage("--blockdev: \(error)")
        }
        defaults = RawOptions(discard: options.style == .qemuNBD ? .ignore : .unmap)
        isReadOnly = options.isReadOnly
        rules = ImageRules(options)
        try defaults.apply(
            cache: options.cache, discard: options.discard, detectZeroes: options.detectZeroes, aio: options.aio, spell: { "--\($0)" })
    }

    /// - Throws: `.runtime` naming what could not be opened.
    func open(in graph: Graph, logger: Logger) async throws(ToolError) {
        do throws(GraphError) {
            let drivers = ToolDrivers.all(defaults, rules) { logger.error("\($0.sanitized(limit: 400))") }
            try await graph.open(options, drivers, isReadOnly: isReadOnly)
        } catch {
            throw .runtime("--blockdev: \(error)")
        }
    }
}

extension ImageRules {
    init(_ options: ServeOptions) {
        self.init(allowed: options.allowedPaths, probesFormat: options.probesBackingFormat)
    }
}
