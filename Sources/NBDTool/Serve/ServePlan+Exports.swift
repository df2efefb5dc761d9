import BlockDrivers
import NBDProtocol
import NBDServer

extension ServePlan {
    /// Adds the image operand and every `--export` to what the configuration file asked for.
    mutating func planExports(_ options: ServeOptions) throws(ToolError) {
        // TRIM of qemu-nbd does nothing unless it is told to; an export of ours gives space back.
        var defaults = RawOptions(discard: options.style == .qemuNBD ? .ignore : .unmap)
        try defaults.apply(
            cache: options.cache, discard: options.discard, detectZeroes: options.detectZeroes, aio: options.aio, spell: { "--\($0)" })
        if options.style == .qemuNBD || !options.images.isEmpty {
            exports.append(try operandExport(options, defaults))
        } else {
            try refuseOperandOptions(options)
        }
        for text in options.exports {
            exports.append(try ExportPlan(parsing: text, defaults: defaults, readOnly: options.isReadOnly))
        }
        for index in exports.indices {
            exports[index].chain.rules = ImageRules(options)
        }
        // A server that was asked not to write does not, whatever one export says.
        if options.isReadOnly { for index in exports.indices { exports[index].isReadOnly = true } }
        guard !exports.isEmpty else { throw .usage("nothing to serve: give an image, --export or --config") }
        var names: Set<String> = []
        for export in exports where !names.insert(export.name).inserted {
            throw .usage("export name '\(export.name.sanitized())' is given twice")
        }
        server.defaultExport = options.defaultExport ?? server.defaultExport
        try requireExport(server.defaultExport, "--default-export")
        try requireExport(options.oldstyleExport, "--oldstyle")
        for listener in listeners { try requireExport(listener.oldstyleExport, "oldstyle") }
    }

    private func operandExport(_ options: ServeOptions, _ defaults: RawOptions) throws(ToolError) -> ExportPlan {
        guard options.images.count == 1 else {
            throw .usage("Invalid number of arguments: expected one image, got \(options.images.count)")
        }
        if options.takesImageOptions && options.format != nil { throw .usage("--image-opts and -f are mutually exclusive") }
        var export: ExportPlan
        if options.takesImageOptions {
            export = try ExportPlan(imageOptions: options.images[0], defaults: defaults, readOnly: options.isReadOnly)
        } else {
            export = ExportPlan(source: try source(operand: options.images[0], options.style))
            export.storage = defaults
            export.isReadOnly = options.isReadOnly
        }
        if let format = options.format { try export.set(format: format) }
        if let text = options.loadSnapshot {
            export.chain.snapshot = try ChainPlan.snapshot(text)
            export.isReadOnly = true
        }
        export.chain.isTemporary = options.usesTemporaryOverlay
        if let text = options.offset {
            guard let offset = options.style == .qemuNBD ? ByteSize.parseCount(text) : ByteSize.parse(text) else {
                throw .usage("Invalid offset '\(text.sanitized())'")
            }
            // Inside the window of --image-opts, as a node on top of it would be.
            let (sum, overflow) = export.offset.addingReportingOverflow(offset)
            guard !overflow, export.byteCount.map({ offset <= $0 }) ?? true else {
                throw .usage("Invalid offset '\(text)': beyond the size")
            }
            export.offset = sum
            export.byteCount = export.byteCount.map { $0 - offset }
        }
        if let text = options.size {
            guard let size = ByteSize.parse(text) else { throw .usage("invalid --size '\(text.sanitized())'") }
            export.byteCount = size
        }
        export.contexts = try ContextPlan(
            showsAllocationDepth: options.showsAllocationDepth, bitmaps: options.bitmaps, tracks: options.tracks)
        export.name = options.exportName ?? ""
        export.description = options.description ?? ""
        try export.check()
        return export
    }

    private func source(operand: String, _ style: ServeOptions.Style) throws(ToolError) -> ExportPlan.Source {
        if style == .nbd { return try ExportPlan.source(operand: operand) }
        // QEMU takes `file:` off; other prefixes name drivers that are not here.
        let path = operand.hasPrefix("file:") ? String(operand.dropFirst("file:".count)) : operand
        for prefix in [
            "json:", "nbd:", "nbd+unix:", "http:", "https:", "ssh:", "null-co:", "null-aio:", "blkdebug:", "rbd:", "iscsi:", "nfs:",
        ]
        where operand.hasPrefix(prefix) {
            throw .usage(
                "cannot open '\(operand.sanitized())': images named by '\(prefix)' are not supported, only files and host devices are")
        }
        guard !path.isEmpty else { throw .usage("the name of the image is empty") }
        return .file(path)
    }

    /// Without an image operand these options would change nothing.
    private func refuseOperandOptions(_ options: ServeOptions) throws(ToolError) {
        let given: [(String, Bool)] = [
            ("--export-name", options.exportName != nil), ("--description", options.description != nil),
            ("--offset", options.offset != nil),
            ("--size", options.size != nil), ("--format", options.format != nil), ("--image-opts", options.takesImageOptions),
            ("--allocation-depth", options.showsAllocationDepth), ("--bitmap", !options.bitmaps.isEmpty),
            ("--track", !options.tracks.isEmpty),
            ("--load-snapshot", options.loadSnapshot != nil),
        ]
        if options.usesTemporaryOverlay { throw .usage("--snapshot needs an image operand") }
        for (option, isGiven) in given where isGiven { throw .usage("\(option) needs an image operand; use the keys of --export instead") }
        guard options.exports.isEmpty else { return }
        let defaults: [(String, String?)] = [
            ("--cache", options.cache), ("--discard", options.discard), ("--detect-zeroes", options.detectZeroes), ("--aio", options.aio),
        ]
        for (option, value) in defaults where value != nil { throw .usage("\(option) does not change the exports of a configuration file") }
    }

    private func requireExport(_ name: String?, _ option: String) throws(ToolError) {
        guard let name, !exports.contains(where: { $0.name == name }) else { return }
        throw .usage("\(option): there is no export '\(name.sanitized())'")
    }
}
