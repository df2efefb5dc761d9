import BlockDrivers
import BlockGraph
import NBDProtocol

extension ExportPlan {
    /// Reads the value of `--export`: `name=…,file=…[,description=…][,readonly=on][,tls=required][,offset=…][,size=…][,cache=…]…`.
    ///
    /// Exactly one of `file=PATH`, `memory=SIZE`, `null=SIZE`, `pattern=SIZE`, `node=NAME` says where the bytes are. A comma inside a value is
    /// written twice.
    init(parsing text: String, defaults: RawOptions, readOnly: Bool) throws(ToolError) {
        var list = try KeyValueList(text, context: "--export", repeatable: ["bitmap", "track"])
        guard let name = list.take("name") else { throw .usage("--export: 'name' is missing in '\(text.sanitized())'") }
        let sources: [Source?] = [
            list.take("file").map { .file($0) },
            try list.takeSize("memory").map { .memory(byteCount: $0) },
            try list.takeSize("null").map { .null(byteCount: $0) },
            try list.takeSize("pattern").map { .pattern(byteCount: $0) },
            list.take("node").map { .node($0) },
        ]
        self.init(name: name, source: try Self.only(of: sources, "--export '\(name.sanitized())'"))
        description = list.take("description") ?? ""
        offset = try list.takeSize("offset") ?? 0
        byteCount = try list.takeSize("size")
        isReadOnly = try list.takeSwitch("readonly") ?? readOnly
        if let text = list.take("tls") { requiresTLS = try Self.requiresTLS(text, "--export") }
        try takeFormat(from: &list, key: "format")
        storage = defaults
        try storage.apply(
            cache: list.take("cache"), discard: list.take("discard"), detectZeroes: list.take("detect-zeroes"), aio: list.take("aio"),
            spell: { "--export \($0)" })
        storage.isLocked = try list.takeSwitch("locking") ?? storage.isLocked
        contexts = try ContextPlan(
            showsAllocationDepth: list.takeSwitch("allocation-depth") ?? false, bitmaps: list.takeAll("bitmap"),
            tracks: list.takeAll("track"))
        if let text = list.take("load-snapshot") {
            chain.snapshot = try ChainPlan.snapshot(text)
            isReadOnly = true
        }
        try list.finish()
        try check()
    }

    /// Reads the simple forms of QEMU's `--image-opts`: `driver=file,filename=…` and
    /// `driver=raw,file.driver=file,file.filename=…[,offset=…][,size=…]`. The keys of `driver=qcow2,…` are only read at opening: as those of
    /// `--blockdev`.
    ///
    /// - Throws: `.usage` for other drivers and unknown keys.
    init(imageOptions text: String, defaults: RawOptions, readOnly: Bool) throws(ToolError) {
        var list = try KeyValueList(text, context: "--image-opts")
        let pairs = list.pairs
        let driver = list.take("driver")
        if driver == "qcow2" {
            do throws(GraphError) {
                self.init(source: .described(try NodeOptions(pairs), text: text))
            } catch {
                throw .usage("--image-opts: \(error)")
            }
            format = .qcow2
            isFormatGiven = true
            isReadOnly = readOnly
            storage = defaults
            return
        }
        let isBare = driver == "file" || driver == "host_device"
        if let driver, !isBare, driver != "raw" {
            throw .usage("--image-opts: driver '\(driver.sanitized())' is not supported: only raw, qcow2, file and host_device are")
        }
        let file = isBare ? "" : "file."
        if let protocolDriver = list.take("file.driver"), protocolDriver != "file" && protocolDriver != "host_device" {
            throw .usage("--image-opts: file.driver '\(protocolDriver.sanitized())' is not supported: only file and host_device are")
        }
        guard let path = list.take(file + "filename"), !path.isEmpty else { throw .usage("--image-opts: '\(file)filename' is missing") }
        self.init(source: .file(path))
        isFormatGiven = driver != nil
        if !isBare {
            offset = try list.takeSize("offset") ?? 0
            byteCount = try list.takeSize("size")
        }
        isReadOnly = try list.takeSwitch("read-only") ?? readOnly
        storage = defaults
        try storage.apply(
            discard: list.take("discard"), detectZeroes: list.take("detect-zeroes"), aio: list.take(file + "aio"),
            spell: { "--image-opts \($0)" })
        storage.isLocked = try list.takeSwitch(file + "locking") ?? storage.isLocked
        try list.finish()
        try check()
    }

    /// Reads an image operand of `nbd serve`: a path, or `memory:SIZE`, `null:SIZE`, `pattern:SIZE`. Write `./memory:1G` for a file of
    /// such a name.
    static func source(operand: String) throws(ToolError) -> Source {
        let makers: [(prefix: String, make: (UInt64) -> Source)] = [
            ("memory:", { .memory(byteCount: $0) }), ("null:", { .null(byteCount: $0) }), ("pattern:", { .pattern(byteCount: $0) }),
        ]
        for (prefix, make) in makers where operand.hasPrefix(prefix) {
            let text = operand.dropFirst(prefix.count)
            guard let size = ByteSize.parse(text) else { throw .usage("invalid size '\(text)' in '\(operand.sanitized())'") }
            return make(size)
        }
        guard !operand.isEmpty else { throw .usage("the name of the image is empty") }
        return .file(operand)
    }

    /// The one source that is not nil.
    static func only(of sources: [Source?], _ context: String) throws(ToolError) -> Source {
        let given = sources.compactMap(\.self)
        guard given.count == 1, let source = given.first else {
            throw .usage("\(context): exactly one of file, memory, null, pattern and node must be given, not \(given.count)")
        }
        guard source != .file("") else { throw .usage("\(context): the name of the file is empty") }
        return source
    }

    private mutating func takeFormat(from list: inout KeyValueList, key: String) throws(ToolError) {
        if let format = list.take(key) { try set(format: format) }
    }

    /// Reads the value of `tls`: required, or optional.
    static func requiresTLS(_ text: String, _ place: String) throws(ToolError) -> Bool {
        switch text {
        case "required": return true
        case "optional": return false
        default: throw .usage("\(place): 'tls' is required or optional, not '\(text.sanitized())'")
        }
    }

    /// - Throws: `.usage` for a format that is not here.
    mutating func set(format text: String) throws(ToolError) {
        guard let format = ImageFormat(rawValue: text) else {
            let known = ImageFormat.allCases.map(\.rawValue).joined(separator: ", ")
            throw .usage("format '\(text.sanitized())' is not supported: only \(known) are")
        }
        self.format = format
        isFormatGiven = true
    }
}
