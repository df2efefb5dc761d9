import ArgumentParser
import Block
import BlockDrivers
import NBDProtocol
import QCOW2

/// `nbd image create`
struct ImageCreateCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "create",
        abstract: "Make a new image; what the file held before is lost.",
        discussion: """
            Options (-o KEY=VALUE[,…], also several times) for qcow2: size, compat (0.10, 1.1), cluster_size, refcount_bits, lazy_refcounts, \
            extended_l2, compression_type (zlib, zstd), backing_file, backing_fmt, data_file, data_file_raw, preallocation (off, metadata, \
            falloc, full). For raw: size, preallocation (off, falloc, full).

            Example:  nbd image create -f qcow2 -b base.raw -F raw overlay.qcow2
            """)

    @Option(name: [.customShort("f"), .customLong("format")], help: "raw or qcow2.")
    var format = ImageFormat.raw

    @Option(name: [.customShort("o"), .customLong("options")], help: ArgumentHelp("How the image is to be.", valueName: "key=value,…"))
    var options: [String] = []

    @Option(
        name: [.customShort("b"), .customLong("backing")], help: "The image that lies below; relative to the directory of the new one.")
    var backing: String?

    @Option(name: [.customShort("F"), .customLong("backing-format")], help: "The format of that.")
    var backingFormat: ImageFormat?

    @Flag(name: [.customShort("u"), .customLong("unsafe-backing")], help: "Do not open the backing file; the size must be given.")
    var isUnsafe = false

    @Flag(name: .shortAndLong, help: "Print nothing.")
    var quiet = false

    @OptionGroup var output: ImageOutput

    @Argument(help: "The file to make.")
    var file: String

    @Argument(help: "Of the virtual disk: bytes, or with a suffix such as 10G.")
    var size: String?

    func run() async throws {
        var plan = try ImageCreationPlan(self)
        try await plan.resolveSize()
        try await plan.run()
        if quiet { return }
        print(output.isJSON ? plan.json.text : plan.text)
    }
}

/// What is to be made.
struct ImageCreationPlan {
    var path: String
    var format: ImageFormat
    var byteCount: UInt64?
    var options = ImageOptions()
    var checksBacking: Bool

    init(_ command: ImageCreateCommand) throws(ToolError) {
        path = command.file
        format = command.format
        checksBacking = !command.isUnsafe
        if let backing = command.backing { options.backingFileName = Array(backing.utf8) }
        if let format = command.backingFormat { options.backingFormat = Array(format.rawValue.utf8) }
        if !command.options.isEmpty { try apply(command.options.joined(separator: ",")) }
        if let size = command.size {
            guard let count = ByteSize.parse(size) else { throw .usage("Invalid image size '\(size.sanitized())'") }
            byteCount = count
        }
        guard format == .qcow2 || options.backingFileName == nil else { throw .usage("a raw image has no backing file") }
        if options.backingFileName != nil, options.backingFormat == nil {
            throw .usage("Backing file specified without backing format: give it with -F")
        }
    }

    private mutating func apply(_ text: String) throws(ToolError) {
        var list = try KeyValueList(text, context: "-o")
        byteCount = try list.takeSize("size")
        if let text = list.take("preallocation") {
            guard let mode = ImageOptions.Preallocation(rawValue: text), format == .qcow2 || mode != .metadata else {
                throw .usage("-o: unknown preallocation '\(text.sanitized())'")
            }
            options.preallocation = mode
        }
        if format == .qcow2 { try applyQCOW2(&list) }
        try list.finish()
    }

    private mutating func applyQCOW2(_ list: inout KeyValueList) throws(ToolError) {
        switch list.take("compat") {
        case nil, "1.1", "v3": break
        case "0.10", "v2": options.version = 2
        case .some(let text): throw .usage("-o: compat is 0.10 or 1.1, not '\(text.sanitized())'")
        }
        if let size = try list.takeSize("cluster_size") { options.clusterByteCount = Int(clamping: size) }
        if let bits = try list.takeSize("refcount_bits") { options.refcountBitCount = Int(clamping: bits) }
        if let lazy = try list.takeSwitch("lazy_refcounts") { options.lazyRefcounts = lazy }
        if let extended = try list.takeSwitch("extended_l2") { options.extendedL2 = extended }
        if let name = list.take("compression_type") {
            guard let type = CompressionType(name: name) else { throw .usage("-o: unknown compression_type '\(name.sanitized())'") }
            options.compression = type
        }
        if let name = list.take("backing_file") { options.backingFileName = Array(name.utf8) }
        if let name = list.take("backing_fmt") {
            guard ImageFormat(rawValue: name) != nil else { throw .usage("-o: unknown backing_fmt '\(name.sanitized())'") }
            options.backingFormat = Array(name.utf8)
        }
        let isRaw = try list.takeSwitch("data_file_raw")
        if let name = list.take("data_file") {
            options.dataFile = ImageOptions.DataFile(name: Array(name.utf8), isRaw: isRaw ?? false)
        } else if isRaw == true {
            throw .usage("-o: data_file_raw needs data_file")
        }
    }

    /// Without a size the disk is as large as the one below.
    mutating func resolveSize() async throws(ToolError) {
        if let name = options.backingFileName, checksBacking {
            let backing = try ImagePath.resolve(String(decoding: name, as: UTF8.self), from: path)
            let format = options.backingFormat.flatMap { ImageFormat(rawValue: String(decoding: $0, as: UTF8.self)) }
            // Whoever uses it does not mind another image on it.
            let opened = try await OpenedImage.open(backing, format, isLocked: false)
            if byteCount == nil { byteCount = opened.byteCount }
            await opened.file.close()
        }
        guard byteCount != nil else { throw .usage("Image creation needs a size parameter") }
    }

    /// - Parameter sources: files that are being read, and so must not be written over.
    /// - Returns: the files that were not there before. None are left when this fails.
    @discardableResult
    func run(sources: Set<FileIdentity> = []) async throws(ToolError) -> MadeFiles {
        var made = MadeFiles()
        guard let byteCount else { return made }
        if format == .qcow2 {
            do throws(ImageError) { _ = try options.geometry() } catch { throw .usage(error.description) }
        }
        let dataPath = try options.dataFile.map { file throws(ToolError) in
            try ImagePath.resolve(String(decoding: file.name, as: UTF8.self), from: path)
        }
        let below = await filesBelow()
        // Before anything is overwritten, and again when names that led nowhere lead to files.
        try requireOthers(than: sources, below, dataPath)
        do throws(ToolError) {
            try made.make(path)
            if let dataPath { try made.make(dataPath) }
            try requireOthers(than: sources, below.union(await filesBelow()), dataPath)
            try await write(byteCount, dataPath)
        } catch {
            made.remove()
            throw error
        }
        return made
    }

    private func write(_ byteCount: UInt64, _ dataPath: String?) async throws(ToolError) {
        let file = try await OpenedImage.open(path, .raw, isReadOnly: false).file
        var dataFile: RawFile?
        if let dataPath { dataFile = try await OpenedImage.open(dataPath, .raw, isReadOnly: false).file }
        try await withImageErrors(path) { () throws(ImageError) in
            if format == .qcow2 {
                try await ImageFile.create(file, virtualByteCount: byteCount, options, dataFile: dataFile)
            } else {
                try await ImageFile.createRaw(file, virtualByteCount: byteCount, options.preallocation)
            }
        }
        await file.close()
        await dataFile?.close()
    }

    /// - Throws: `.runtime` when a file that is to be made is one that is needed.
    private func requireOthers(than sources: Set<FileIdentity>, _ below: Set<FileIdentity>, _ dataPath: String?) throws(ToolError) {
        let image = HostProcess.identity(of: path)
        let data = dataPath.flatMap(HostProcess.identity)
        if let dataPath, image != nil, image == data { throw .runtime("'\(dataPath)' cannot be the image and its data file") }
        for (name, identity) in [(path, image), (dataPath ?? "", data)] {
            guard let identity else { continue }
            if sources.contains(identity) { throw .runtime("'\(name)' is the source, or lies below it") }
            if below.contains(identity) { throw .runtime("'\(name)' is the backing file, or lies below it") }
        }
    }

    /// The backing file and all that can be found below it; with `-u` only itself, as it is not looked at.
    private func filesBelow() async -> Set<FileIdentity> {
        var files: Set<FileIdentity> = []
        guard let name = options.backingFileName else { return files }
        let format = options.backingFormat.flatMap { ImageFormat(rawValue: String(decoding: $0, as: UTF8.self)) }
        var next = (try? ImagePath.resolve(String(decoding: name, as: UTF8.self), from: path)).map { (path: $0, format: format) }
        while let (path, format) = next, let identity = HostProcess.identity(of: path), files.insert(identity).inserted {
            next = nil
            guard checksBacking, files.count < ImageChain.depthLimit else { break }
            guard let opened = try? await OpenedImage.open(path, format, isLocked: false) else { break }
            await opened.file.close()
            guard let header = opened.image?.header else { break }
            func resolve(_ name: [UInt8]?) -> String? {
                name.flatMap { try? ImagePath.resolve(String(decoding: $0, as: UTF8.self), from: path) }
            }
            if header.hasDataFile, let file = resolve(header.dataFileName).flatMap(HostProcess.identity) { files.insert(file) }
            let format = header.backingFormat.flatMap { ImageFormat(rawValue: String(decoding: $0, as: UTF8.self)) }
            next = resolve(header.backingFileName).map { (path: $0, format: format) }
        }
        return files
    }

    /// What was made, in the words of qemu-img's options.
    private var fields: [(key: String, value: JSON)] {
        var fields: [(key: String, value: JSON)] = [("size", .integer(byteCount ?? 0))]
        if options.preallocation != .off { fields.append(("preallocation", .string(options.preallocation.rawValue))) }
        guard format == .qcow2 else { return fields }
        fields += [
            ("compat", .string(options.version == 2 ? "0.10" : "1.1")), ("cluster_size", .integer(UInt64(options.clusterByteCount))),
            ("extended_l2", .bool(options.extendedL2)), ("compression_type", .string(options.compression.name)),
        ]
        if let name = options.backingFileName { fields.append(("backing_file", .string(String(decoding: name, as: UTF8.self)))) }
        if let name = options.backingFormat { fields.append(("backing_fmt", .string(String(decoding: name, as: UTF8.self)))) }
        if let data = options.dataFile {
            fields += [("data_file", .string(String(decoding: data.name, as: UTF8.self))), ("data_file_raw", .bool(data.isRaw))]
        }
        return fields + [("lazy_refcounts", .bool(options.lazyRefcounts)), ("refcount_bits", .integer(UInt64(options.refcountBitCount)))]
    }

    var json: JSON { .object([("filename", .string(path)), ("format", .string(format.rawValue))] + fields) }

    var text: String {
        let words = fields.map { field in
            switch field.value {
            case .bool(let isOn): "\(field.key)=\(isOn ? "on" : "off")"
            case .string(let text): "\(field.key)=\(text.sanitized(limit: 1024))"
            default: "\(field.key)=\(field.value.text)"
            }
        }
        return "Formatting '\(path)', fmt=\(format.rawValue) " + words.joined(separator: " ")
    }
}
