import Block
import BlockDrivers
import Logging
import NBDProtocol
import NBDServer

/// Opens what an `ExportPlan` names.
enum ImageOpener {
    /// - Parameter expectsProbing: Whoever gives no format is used to a program that finds out. Nothing is probed here, because a guest can
    ///   write what a probe would find: so a file that looks like an image format is an error then, and any other makes for a warning.
    /// - Throws: `.runtime` naming the file.
    static func open(_ plan: ExportPlan, expectsProbing: Bool, logger: Logger) async throws(ToolError) -> Export {
        let (device, name) = try await device(plan)
        if case .file = plan.source, let refusal = plan.storage.aio.refusal {
            logger.warning("\(refusal): '\(name)' is served by threads, not aio=\(plan.storage.aio.rawValue)")
        }
        do throws(ToolError) {
            if !plan.isFormatGiven, case .file = plan.source {
                try await checkFormat(of: device, plan, name, expectsProbing, logger)
            }
            return Export(
                name: plan.name, description: plan.description, device: try window(plan, device, name), isReadOnly: plan.isReadOnly)
        } catch {
            await device.close()
            throw error
        }
    }

    private static func checkFormat(
        of device: any BlockDevice, _ plan: ExportPlan, _ name: String, _ expectsProbing: Bool, _ logger: Logger
    ) async throws(ToolError) {
        guard let format = await FormatGuard.format(of: device), plan.offset == 0 else {
            if expectsProbing { logger.warning("the format of '\(name)' was not specified: it is served as raw; -f raw silences this") }
            return
        }
        guard !expectsProbing else {
            throw .runtime(
                "'\(name)' looks like a \(format) image, which is not supported; -f raw serves the bytes of the file as they are")
        }
        logger.warning("'\(name)' looks like a \(format) image; the bytes of the file are served as they are")
    }

    private static func device(_ plan: ExportPlan) async throws(ToolError) -> (device: any BlockDevice, name: String) {
        switch plan.source {
        case .file(let path):
            var options = plan.storage
            options.isReadOnly = plan.isReadOnly
            do {
                return (try await openRaw(path, options), path)
            } catch {
                throw .runtime(error.description)
            }
        case .memory(let byteCount): return (MemoryDevice(byteCount: byteCount), "memory:\(byteCount)")
        case .null(let byteCount): return (NullDevice(byteCount: byteCount), "null:\(byteCount)")
        case .pattern(let byteCount): return (PatternDevice(byteCount: byteCount), "pattern:\(byteCount)")
        }
    }

    private static func window(_ plan: ExportPlan, _ device: any BlockDevice, _ name: String) throws(ToolError) -> any BlockDevice {
        guard plan.offset > 0 || plan.byteCount != nil else { return device }
        do {
            return try RawWindow(device, offset: plan.offset, byteCount: plan.byteCount)
        } catch {
            throw .runtime("Could not open '\(name)' with this offset and size: \(error.detail)")
        }
    }
}
