import Block
import BlockDrivers
import NBDProtocol
import QCOW2

/// Opens a qcow2 image and the files it stands on.
///
/// An image is a stranger's, and so are the names in it: a file is opened only when it lies beside the image that names it, or where the
/// user allows it, whatever symbolic links say; its format must be in the image, or be given; no file may appear twice.
struct ServedChain {
    private let plan: ChainPlan
    private let storage: RawOptions
    private var seen: Set<FileIdentity> = []

    /// Images on top of each other. QEMU opens some more, and nobody has as many.
    static let depthLimit = 200

    init(_ plan: ExportPlan) {
        self.plan = plan.chain
        storage = plan.storage
    }

    /// - Throws: `.runtime` naming the file at fault.
    mutating func open(_ path: String, isReadOnly: Bool) async throws(ToolError) -> any BlockDevice {
        let isReadOnly = isReadOnly || plan.snapshot != nil
        let image = try await openImage(path, isReadOnly: isReadOnly, isTop: true, depth: 0)
        guard storage.detectZeroes != .off, !isReadOnly else { return image }
        return DetectZeroes(image, mayUnmap: storage.detectZeroes == .unmap)
    }

    private mutating func openImage(_ path: String, isReadOnly: Bool, isTop: Bool, depth: Int) async throws(ToolError) -> any BlockDevice {
        guard depth < Self.depthLimit else { throw .runtime("Could not open '\(path)': more than \(Self.depthLimit) images on top of each other") }
        let file = try await openFile(path, isReadOnly: isReadOnly)
        var backing: (any BlockDevice)?
        var dataFile: RawFile?
        do throws(ToolError) {
            let header = try await Self.reading(path) { () async throws(BlockError) in try await ImageHeader.read(from: file) }
            backing = try await openBacking(of: header, path, isTop: isTop, depth: depth)
            dataFile = try await openDataFile(of: header, path, isReadOnly: isReadOnly, isTop: isTop)
            let (below, data) = (backing, dataFile)
            var options = QCOW2Image.Options(isReadOnly: isReadOnly, honorsDiscard: storage.discard == .unmap)
            options.writesThrough = storage.cache.writesThrough
            if isTop { options.snapshot = plan.snapshot }
            // From here on the image closes what it was given.
            backing = nil
            dataFile = nil
            let chosen = options
            return try await Self.reading(path) { () async throws(BlockError) in
                try await QCOW2Image.open(header, on: file, backing: below, dataFile: data, chosen)
            }
        } catch {
            await file.close()
            await backing?.close()
            await dataFile?.close()
            throw error
        }
    }

    private mutating func openBacking(of header: ImageHeader, _ path: String, isTop: Bool, depth: Int) async throws(ToolError) -> (any BlockDevice)? {
        if isTop, let given = plan.backing { return try await openBelow(given.path, given.format, depth) }
        guard let bytes = header.backingFileName, !bytes.isEmpty else { return nil }
        let place = try allowed(bytes, "backing file", of: path)
        let format: ImageFormat
        if let name = header.backingFormat.map({ String(decoding: $0, as: UTF8.self) }) {
            guard let known = ["file": .raw, "host_device": .raw][name] ?? ImageFormat(rawValue: name) else {
                throw .runtime("Could not open the backing file of '\(path)': its format '\(name.sanitized())' is not supported")
            }
            format = known
        } else if plan.probesBackingFormat {
            format = try await Self.probe(place)
        } else {
            throw .runtime(
                "Could not open the backing file of '\(path)': the image does not say its format (qemu-img rebase -u -F FORMAT makes it), and --probe-backing was not given")
        }
        return try await openBelow(place, format, depth)
    }

    private mutating func openBelow(_ path: String, _ format: ImageFormat, _ depth: Int) async throws(ToolError) -> any BlockDevice {
        switch format {
        case .raw: return try await openFile(path, isReadOnly: true)
        case .qcow2: return try await openImage(path, isReadOnly: true, isTop: false, depth: depth + 1)
        }
    }

    private mutating func openDataFile(of header: ImageHeader, _ path: String, isReadOnly: Bool, isTop: Bool) async throws(ToolError) -> RawFile? {
        guard header.hasDataFile else { return nil }
        if isTop, let given = plan.dataFile { return try await openFile(given, isReadOnly: isReadOnly) }
        guard let bytes = header.dataFileName, !bytes.isEmpty else {
            throw .runtime("Could not open '\(path)': it has an external data file and does not say which")
        }
        return try await openFile(try allowed(bytes, "data file", of: path), isReadOnly: isReadOnly)
    }

    private mutating func openFile(_ path: String, isReadOnly: Bool) async throws(ToolError) -> RawFile {
        if let identity = HostProcess.identity(of: path), !seen.insert(identity).inserted {
            throw .runtime("Could not open '\(path)': the chain of images leads back to it")
        }
        var options = storage
        options.isReadOnly = isReadOnly
        options.isGrowable = !isReadOnly
        options.detectZeroes = .off
        // The image sees to it that what was written is durable, with its tables: see `writesThrough`.
        if options.cache == .writethrough { options.cache = .writeback }
        if options.cache == .directsync { options.cache = .none }
        do {
            return try await RawFile.open(path, options)
        } catch {
            throw .runtime(error.description)
        }
    }

    // MARK: Names in images

    /// Where the file is that an image names, without symbolic links, if it may be opened.
    private func allowed(_ bytes: [UInt8], _ what: String, of image: String) throws(ToolError) -> String {
        guard let text = String(validating: bytes, as: UTF8.self), !text.utf8.contains(0) else {
            throw .runtime("Could not open the \(what) of '\(image)': its name is not text")
        }
        let name = text.hasPrefix("file:") ? String(text.dropFirst("file:".count)) : text
        let isURI = name.prefix { $0 != "/" }.contains(":")
        guard !isURI else {
            throw .runtime("Could not open the \(what) of '\(image)': '\(name.sanitized())' is no file, and others are not supported")
        }
        let path = name.hasPrefix("/") ? name : Self.directory(of: image) + name
        guard let place = HostProcess.resolved(path), let home = HostProcess.resolved(Self.directory(of: image)) else {
            throw .runtime("Could not open the \(what) of '\(image)': '\(path.sanitized())' is not there, or may not be looked at")
        }
        let allowed = [home] + plan.allowedDirectories.compactMap { HostProcess.resolved($0) }
        guard allowed.contains(where: { Self.is(place, below: $0) }) else {
            throw .runtime(
                "Could not open the \(what) of '\(image)': '\(place.sanitized())' does not lie beside the image; --allow-path \(Self.directory(of: place).sanitized()) allows it")
        }
        return place
    }

    /// With its last slash.
    private static func directory(of path: String) -> String {
        guard let slash = path.lastIndex(of: "/") else { return "./" }
        return String(path[...slash])
    }

    private static func `is`(_ path: String, below directory: String) -> Bool {
        path == directory || path.hasPrefix(directory.hasSuffix("/") ? directory : directory + "/")
    }

    private static func probe(_ path: String) async throws(ToolError) -> ImageFormat {
        let file: RawFile
        do {
            file = try await RawFile.open(path, RawOptions(isReadOnly: true, isLocked: false))
        } catch {
            throw .runtime(error.description)
        }
        let format = await FormatGuard.format(of: file)
        await file.close()
        guard let format else { return .raw }
        guard let known = ImageFormat(rawValue: format) else { throw .runtime("Could not open '\(path)': format \(format) is not supported") }
        return known
    }

    private static func reading<Result>(
        _ path: String, _ body: () async throws(BlockError) -> Result
    ) async throws(ToolError) -> Result {
        do {
            return try await body()
        } catch {
            throw .runtime("Could not open '\(path)': \(error.detail)")
        }
    }
}
