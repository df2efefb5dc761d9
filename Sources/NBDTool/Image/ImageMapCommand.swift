import ArgumentParser
import Block
import BlockDrivers
import QCOW2

/// `nbd image map`
struct ImageMapCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "map", abstract: "Show where each part of the disk lies.",
        discussion: "Depth counts the images: 0 is the one that is named, 1 the one below it.")

    @Option(name: [.customShort("f"), .customLong("format")], help: "raw or qcow2; else the first bytes of the file decide.")
    var format: ImageFormat?

    @Flag(name: [.customShort("U"), .customLong("force-share")], help: "Look even if another program writes the image.")
    var isShared = false

    @Option(help: "A directory from which images may name files; several times. Their own is always allowed.")
    var allowPath: [String] = []

    @OptionGroup var output: ImageOutput

    @Argument(help: "The image.")
    var file: String

    func run() async throws {
        let chain = try await ImageChain.open(
            file, format, ImageRules(allowed: allowPath, probesFormat: true), RawOptions(isReadOnly: true, isLocked: !isShared))
        var map = try await ChainMap(chain)
        var lines = ImageMapLines(isJSON: output.isJSON)
        while let entry = try await map.next() { try lines.append(entry) }
        lines.finish()
        await chain.close()
    }
}

/// One run of the disk, as qemu-img tells it.
struct ChainMapEntry: Equatable {
    var start: UInt64
    var length: UInt64
    var depth: Int
    /// An image of the chain says what is here.
    var isPresent: Bool
    var isZero: Bool
    var isData: Bool
    var offset: UInt64?
    var path: String

    /// Whether `next`, which follows, says the same.
    func continues(_ next: ChainMapEntry) -> Bool {
        depth == next.depth && isPresent == next.isPresent && isZero == next.isZero && isData == next.isData && path == next.path
            && (offset == nil ? next.offset == nil : offset.map { $0 &+ length } == next.offset)
    }
}

/// Walks over a chain of images.
struct ChainMap {
    private let chain: ImageChain
    private var maps: [ImageMap?] = []
    private var paths: [String] = []
    private var position: UInt64 = 0
    private var pending: ChainMapEntry?

    init(_ chain: ImageChain) async throws(ToolError) {
        self.chain = chain
        for opened in chain.images {
            let image = opened.image
            maps.append(
                try await withImageErrors(opened.path) { () throws(ImageError) in
                    guard let image else { return nil }
                    return try await ImageMap(image)
                })
            var path = opened.path
            if let header = image?.header, header.hasDataFile, let name = header.dataFileName {
                path = try ImagePath.resolve(String(decoding: name, as: UTF8.self), from: path)
            }
            paths.append(path)
        }
    }

    /// The next run, as long as it is alike; nil at the end.
    mutating func next() async throws(ToolError) -> ChainMapEntry? {
        guard var entry = try await take() else { return nil }
        while let more = try await take() {
            guard entry.continues(more) else {
                pending = more
                break
            }
            entry.length += more.length
        }
        return entry
    }

    private mutating func take() async throws(ToolError) -> ChainMapEntry? {
        if let entry = pending {
            pending = nil
            return entry
        }
        let end = chain.images[0].byteCount
        guard position < end else { return nil }
        let entry = try await entry(at: position, limit: end - position)
        position += entry.length
        return entry
    }

    private func entry(at start: UInt64, limit: UInt64) async throws(ToolError) -> ChainMapEntry {
        var limit = limit
        for (depth, opened) in chain.images.enumerated() {
            func entry(_ length: UInt64, zero: Bool, data: Bool, _ offset: UInt64?) -> ChainMapEntry {
                ChainMapEntry(
                    start: start, length: length, depth: depth, isPresent: true, isZero: zero, isData: data, offset: offset,
                    path: paths[depth])
            }
            guard start < opened.byteCount else {
                // Behind the end of the image below: zeroes, for which the one above it stands.
                return nothing(start, limit, depth - 1)
            }
            limit = min(limit, opened.byteCount - start)
            guard let map = maps[depth] else {
                let (count, status) = try await rawStatus(opened, start, limit)
                return entry(count, zero: status.contains(.zero), data: !status.contains(.zero), start)
            }
            let run = try await withImageErrors(opened.path) { () throws(ImageError) in try await map.run(at: start, limit: limit) }
            limit = min(limit, run.byteCount)
            switch run.kind {
            case .data(let offset):
                // What the host has no space for reads as zeroes, too.
                guard !(opened.image?.header.hasDataFile ?? false), offset < opened.file.currentByteCount else {
                    return entry(limit, zero: false, data: true, offset)
                }
                let (count, status) = try await rawStatus(opened, offset, min(limit, opened.file.currentByteCount - offset))
                return entry(count, zero: status.contains(.zero), data: true, offset)
            case .compressed: return entry(limit, zero: false, data: true, nil)
            case .zero(let offset): return entry(limit, zero: true, data: false, offset)
            case .unallocated: continue
            }
        }
        return nothing(start, limit, chain.images.count - 1)
    }

    private func nothing(_ start: UInt64, _ length: UInt64, _ depth: Int) -> ChainMapEntry {
        ChainMapEntry(
            start: start, length: length, depth: depth, isPresent: false, isZero: true, isData: false, offset: nil, path: paths[depth])
    }

    private func rawStatus(_ opened: OpenedImage, _ start: UInt64, _ limit: UInt64) async throws(ToolError) -> (UInt64, ExtentStatus) {
        guard let range = ByteRange(start: start, count: limit) else { return (limit, .data) }
        var list = ExtentList(byteCountLimit: limit, extentCountLimit: 1)
        do throws(BlockError) {
            try await opened.file.status(of: range, into: &list)
        } catch {
            throw .runtime("'\(opened.path)': \(error.detail)")
        }
        return list.extents.first.map { ($0.count, $0.status) } ?? (limit, .data)
    }
}

/// Prints a map while it is made: it can have millions of entries.
private struct ImageMapLines {
    let isJSON: Bool
    private var isFirst = true

    init(isJSON: Bool) {
        self.isJSON = isJSON
        if !isJSON { print(Self.row("Offset", "Length", "Mapped to", "File")) }
    }

    mutating func append(_ entry: ChainMapEntry) throws(ToolError) {
        guard isJSON else {
            guard entry.isData, !entry.isZero else { return }
            guard let offset = entry.offset else { throw .runtime("File contains external, encrypted or compressed clusters: use --json") }
            print(Self.row(Self.hex(entry.start), Self.hex(entry.length), Self.hex(offset), entry.path))
            return
        }
        var line = "{ \"start\": \(entry.start), \"length\": \(entry.length), \"depth\": \(entry.depth), \"present\": \(entry.isPresent), "
        line += "\"zero\": \(entry.isZero), \"data\": \(entry.isData)"
        if let offset = entry.offset { line += ", \"offset\": \(offset)" }
        print((isFirst ? "[" : ",\n") + line + "}", terminator: "")
        isFirst = false
    }

    func finish() {
        if isJSON { print(isFirst ? "[]" : "]") }
    }

    private static func hex(_ value: UInt64) -> String { value == 0 ? "0" : "0x" + String(value, radix: 16) }

    private static func row(_ cells: String...) -> String {
        cells.dropLast().map { $0 + String(repeating: " ", count: max(0, 16 - $0.count)) }.joined() + (cells.last ?? "")
    }
}
