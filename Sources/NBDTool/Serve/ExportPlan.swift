import BlockDrivers
import BlockGraph
import NBDProtocol

/// One export, checked but not opened: what `--export`, an image operand or an `[[exports]]` table of a configuration file asks for.
struct ExportPlan: Equatable, Sendable {
    enum Source: Equatable, Sendable {
        case file(String)
        /// Bytes in memory, lost at exit; only what is written takes space.
        case memory(byteCount: UInt64)
        /// Reads as zeroes, forgets what is written.
        case null(byteCount: UInt64)
        /// Read-only: every 8 bytes hold their own offset, big-endian.
        case pattern(byteCount: UInt64)
        /// A node that `--blockdev` opens.
        case node(String)
        /// An image and all that it stands on, as `--image-opts` describe them.
        case described(NodeOptions, text: String)
    }

    var name = ""
    var description = ""
    var source: Source
    /// Where the export begins, in bytes from the start of the source.
    var offset: UInt64 = 0
    /// Bytes from `offset` on; nil: all there are.
    var byteCount: UInt64?
    var isReadOnly = false
    /// In clear, there is no such export.
    var requiresTLS = false
    var storage = RawOptions()
    /// What clients may ask for besides `base:allocation`.
    var contexts = ContextPlan()
    /// Somebody said what the bytes of the file are. Otherwise they are the disk, and a file that looks like an image format is refused
    /// (`FormatGuard`).
    var isFormatGiven = false
    var format = ImageFormat.raw
    var chain = ChainPlan()

    /// For messages.
    var sourceName: String {
        switch source {
        case .file(let path): path
        case .memory(let byteCount): "memory:\(byteCount)"
        case .null(let byteCount): "null:\(byteCount)"
        case .pattern(let byteCount): "pattern:\(byteCount)"
        case .node(let name): name
        case .described(_, let text): text
        }
    }

    /// - Throws: `.usage` for a name or description over 4096 bytes (S-LIM-02), or a window that ends beyond 2^63 - 1.
    func check() throws(ToolError) {
        guard name.utf8.count <= stringByteCountLimit else {
            throw .usage("export name '\(name.sanitized())' too long: over \(stringByteCountLimit) bytes")
        }
        guard description.utf8.count <= stringByteCountLimit else {
            throw .usage("export description '\(description.sanitized())' too long: over \(stringByteCountLimit) bytes")
        }
        guard offset <= ByteSize.limit - (byteCount ?? 0) else {
            throw .usage("export '\(name.sanitized())': offset and size end beyond 2^63")
        }
        try storage.check()
        try contexts.check(isReadOnly: isReadOnly, export: name)
        try chain.check(format, source)
    }
}

/// How files are opened, as typed.
extension RawOptions {
    /// - Throws: `.usage` for combinations that cannot do what they say.
    func check() throws(ToolError) {
        if let contradiction { throw .usage(contradiction) }
    }

    /// Sets what the given values say; a nil value changes nothing.
    /// - Parameter spell: how the option is written where it was given, for messages.
    mutating func apply(
        cache: String? = nil, discard: String? = nil, detectZeroes: String? = nil, aio: String? = nil, spell: (String) -> String
    ) throws(ToolError) {
        if let cache { self.cache = try Self.parse(cache, spell("cache")) }
        if let discard {
            // qemu-nbd takes on and off for unmap and ignore as well.
            self.discard = try Self.parse(["on": "unmap", "off": "ignore"][discard] ?? discard, spell("discard"))
        }
        if let detectZeroes { self.detectZeroes = try Self.parse(detectZeroes, spell("detect-zeroes")) }
        if let aio { self.aio = try Self.parse(aio, spell("aio")) }
    }

    private static func parse<T: RawRepresentable<String> & CaseIterable>(_ text: String, _ option: String) throws(ToolError) -> T {
        guard let value = T(rawValue: text) else {
            let known = T.allCases.map(\.rawValue).joined(separator: ", ")
            throw .usage("Invalid \(option) mode '\(text.sanitized())': expected one of \(known)")
        }
        return value
    }
}
