import Block
import BlockDrivers
import BlockGraph
import NBDProtocol
import QCOW2

/// An image and all that lies below it: opened file by file as `ImageRules` allow, for tools that look at one image after the other, and as
/// nodes of a graph.
///
/// No file may appear twice, be it as image or as data file, and no more than `depthLimit` images lie on each other.
struct ImageChain {
    /// The image first, then what it stands on, each with its data file.
    private(set) var images: [OpenedImage] = []
    private let rules: ImageRules
    private let storage: RawOptions
    /// All that are open, images and data files.
    private(set) var files: Set<FileIdentity> = []

    /// Images on top of each other. QEMU opens some more, and nobody has as many.
    static let depthLimit = 200

    private init(_ rules: ImageRules, _ storage: RawOptions) {
        self.rules = rules
        self.storage = storage
    }

    /// - Parameters:
    ///   - format: nil lets the first bytes decide. Of what the image stands on, it decides itself.
    ///   - storage: how files are opened; what lies below the image is always opened read-only.
    /// - Throws: `.runtime` naming the file at fault. Nothing is left open then.
    static func open(_ path: String, _ format: ImageFormat?, _ rules: ImageRules, _ storage: RawOptions) async throws(ToolError) -> ImageChain {
        var chain = ImageChain(rules, storage)
        try await chain.open(ImageRules.Place(name: path, path: path), format, isReadOnly: storage.isReadOnly)
        return chain
    }

    /// The images below one that is open already; nil when it names none.
    ///
    /// - Parameter image: where that one lies.
    static func open(
        below header: ImageHeader, at image: String, _ rules: ImageRules, _ storage: RawOptions
    ) async throws(ToolError) -> ImageChain? {
        guard let (place, format) = try rules.backing(of: header, at: image) else { return nil }
        var chain = ImageChain(rules, storage)
        if let identity = HostProcess.identity(of: image) { chain.files.insert(identity) }
        try await chain.open(place, format, isReadOnly: true)
        return chain
    }

    private mutating func open(_ place: ImageRules.Place, _ format: ImageFormat?, isReadOnly: Bool) async throws(ToolError) {
        do throws(ToolError) {
            var next: (place: ImageRules.Place, format: ImageFormat?)? = (place, format)
            while let (place, format) = next { next = try await append(place, format, isReadOnly: isReadOnly || !images.isEmpty) }
        } catch {
            await close()
            throw error
        }
    }

    /// Opens one image with its data file, and tells what lies below it.
    private mutating func append(
        _ place: ImageRules.Place, _ format: ImageFormat?, isReadOnly: Bool
    ) async throws(ToolError) -> (place: ImageRules.Place, format: ImageFormat?)? {
        guard images.count < Self.depthLimit else {
            throw .runtime("Could not open '\(place.name)': more than \(Self.depthLimit) images on top of each other")
        }
        try enter(place)
        let options = storage.ofImageFile(isReadOnly: isReadOnly)
        var opened = try await OpenedImage.open(place.path, format, options)
        opened.path = place.name
        images.append(opened)
        guard let header = opened.image?.header else {
            if images.count > 1, format == nil, let other = await FormatGuard.format(of: opened.file) {
                throw .runtime("Could not open '\(place.name)': format \(other) is not supported")
            }
            return nil
        }
        do throws(FormatError) { try header.requireReadable() } catch { throw .runtime("Could not open '\(place.name)': \(error)") }
        if let file = try rules.dataFile(of: header, at: place.name) {
            try enter(file)
            images[images.count - 1].dataFile = try await OpenedImage.open(file.path, .raw, options).file
        }
        return try rules.backing(of: header, at: place.name)
    }

    private mutating func enter(_ place: ImageRules.Place) throws(ToolError) {
        if let identity = HostProcess.identity(of: place.path), !files.insert(identity).inserted {
            throw .runtime("Could not open '\(place.name)': the chain of images leads back to it")
        }
    }

    func close() async {
        for opened in images {
            await opened.file.close()
            await opened.dataFile?.close()
        }
    }
}

extension ImageChain {
    /// Makes the images nodes, from the bottom, each on its files and on the image below it.
    ///
    /// - Parameters:
    ///   - snapshot: of the first image.
    ///   - report: is told what goes wrong later and cannot be answered to anybody.
    /// - Returns: the first image's. All files belong to the graph from then on; also when this fails: then they are closed.
    /// - Throws: `.runtime` naming the image at fault.
    func add(to graph: Graph, snapshot: SnapshotSelector? = nil, report: (@Sendable (String) -> Void)? = nil) async throws(ToolError) -> Node {
        var added: [Node] = []
        do {
            var below: Node?
            for (depth, opened) in images.enumerated().reversed() {
                let file = try graph.add(driver: "file", opened.file)
                added.append(file)
                guard let header = opened.image?.header else {
                    below = file
                    continue
                }
                var edges = [Node.Edge(.file, file)]
                if let dataFile = opened.dataFile {
                    let node = try graph.add(driver: "file", dataFile)
                    added.append(node)
                    edges.append(Node.Edge(.dataFile, node))
                }
                if let below { edges.append(Node.Edge(.backing, below)) }
                var options = QCOW2Image.Options(
                    storage, isReadOnly: opened.file.info.isReadOnly, snapshot: depth == 0 ? snapshot : nil)
                if let report { options.report = { [path = opened.path] in report("'\(path)': \($0)") } }
                do {
                    let image = try await QCOW2Image.open(header, on: edges, options)
                    below = try graph.add(driver: "qcow2", image, edges: edges)
                    added += [below].compactMap(\.self)
                } catch let error as BlockError {
                    throw ToolError.runtime("Could not open '\(opened.path)': \(error.detail)")
                }
            }
            guard let below else { throw ToolError.runtime("nothing to open") }
            return below
        } catch {
            for node in added.reversed() where graph.node(node.name) === node { try? await graph.remove(node.name) }
            await close()
            throw (error as? ToolError) ?? .runtime("\(error)")
        }
    }
}

extension RawOptions {
    /// For the files of an image that is opened with these options.
    func ofImageFile(isReadOnly: Bool) -> RawOptions {
        var options = self
        options.isReadOnly = isReadOnly
        options.isGrowable = !isReadOnly
        options.detectZeroes = .off
        // An image sees to it that what was written is durable, with its tables: see `QCOW2Image.Options.writesThrough`.
        if options.cache == .writethrough { options.cache = .writeback }
        if options.cache == .directsync { options.cache = .none }
        return options
    }
}

extension QCOW2Image.Options {
    init(_ storage: RawOptions, isReadOnly: Bool, snapshot: SnapshotSelector?) {
        self.init(isReadOnly: isReadOnly, honorsDiscard: storage.discard == .unmap, snapshot: snapshot)
        writesThrough = storage.cache.writesThrough
    }
}

extension QCOW2Image {
    /// Opens an image on the nodes that it will stand on. They stay the graph's.
    static func open(_ header: ImageHeader, on edges: [Node.Edge], _ options: Options) async throws(BlockError) -> QCOW2Image {
        func face(_ role: Node.Role) -> NodeFace? { edges.first { $0.role == role }?.node.face }
        guard let file = face(.file) else { throw BlockError(.invalid, "the image has no file") }
        return try await open(header, on: file, backing: face(.backing), dataFile: face(.dataFile), options)
    }
}
