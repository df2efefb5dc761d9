import Block
import BlockDrivers
import BlockGraph
import QCOW2

/// The drivers of `--blockdev` and `--image-opts`: QEMU's names and keys where it has them.
enum ToolDrivers {
    /// - Parameters:
    ///   - defaults: how files are opened when their options do not say.
    ///   - rules: for the files that images name.
    ///   - snapshot: which internal snapshot the node on top shows.
    ///   - report: is told what goes wrong later and cannot be answered to anybody.
    static func all(
        _ defaults: RawOptions, _ rules: ImageRules, snapshot: SnapshotSelector? = nil, report: @escaping @Sendable (String) -> Void = { _ in }
    ) -> Drivers {
        var drivers = Drivers()
        for name in ["file", "host_device"] {
            drivers.register(name) { options, opening throws(GraphError) in try await file(&options, opening, name, defaults) }
        }
        drivers.register("qcow2") { options, opening throws(GraphError) in
            let snapshot = options.place.isEmpty ? snapshot : nil
            return try await QCOW2Driver(defaults, rules, snapshot: snapshot, report: report).open(&options, opening)
        }
        drivers.register("raw") { options, opening throws(GraphError) in try await raw(&options, opening) }
        drivers.register("memory") { options, opening throws(GraphError) in
            guard let size = try options.takeSize("size") else { throw GraphError(.invalid, "driver 'memory' needs \(options.place)size=") }
            return Drivers.Opened(MemoryDevice(byteCount: size, isReadOnly: opening.isReadOnly))
        }
        for name in ["null-co", "null"] {
            drivers.register(name) { options, _ throws(GraphError) in
                // Ours always reads as zeroes.
                _ = try options.takeFlag("read-zeroes")
                return Drivers.Opened(NullDevice(byteCount: try options.takeSize("size") ?? 1 << 30))
            }
        }
        return drivers
    }

    private static func file(
        _ options: inout NodeOptions, _ opening: Opening, _ driver: String, _ defaults: RawOptions
    ) async throws(GraphError) -> Drivers.Opened {
        let path = try options.require("filename", of: driver)
        var raw = defaults
        raw.isReadOnly = opening.isReadOnly
        raw.isGrowable = true
        let isDirect = try options.takeFlag("cache.direct") ?? raw.cache.isDirect
        if try options.takeFlag("cache.no-flush") ?? (raw.cache == .unsafe) {
            guard !isDirect else { throw GraphError(.invalid, "\(options.place)cache.direct and cache.no-flush together are not supported") }
            raw.cache = .unsafe
        } else {
            raw.cache = isDirect ? (raw.cache.writesThrough ? .directsync : .none) : (raw.cache.writesThrough ? .writethrough : .writeback)
        }
        let locking = try options.takeChoice("locking", ["on", "off", "auto"])
        do throws(ToolError) {
            let place = options.place
            try raw.apply(
                discard: options.take("discard"), detectZeroes: options.take("detect-zeroes"), aio: options.take("aio"),
                spell: { place + $0 })
            try raw.check()
        } catch {
            throw GraphError(.invalid, error.message)
        }
        raw.isLocked = locking.map { $0 != "off" } ?? raw.isLocked
        do throws(OpenError) {
            return Drivers.Opened(try await openRaw(path, raw))
        } catch {
            throw GraphError(.cannotOpen, error.description)
        }
    }

    private static func raw(_ options: inout NodeOptions, _ opening: Opening) async throws(GraphError) -> Drivers.Opened {
        let offset = try options.takeSize("offset") ?? 0
        let size = try options.takeSize("size")
        guard let file = try await opening.child("file", of: &options, driver: "file") else {
            throw GraphError(.invalid, "driver 'raw' needs \(options.place)file=NODE or \(options.place)file.driver=")
        }
        do throws(BlockError) {
            return Drivers.Opened(
                try RawWindow(file.face, offset: offset, byteCount: size), edges: [Node.Edge(.filtered, file, offset: offset)])
        } catch {
            throw GraphError(.cannotOpen, "\(options.place)offset and size: \(error.detail)")
        }
    }
}
