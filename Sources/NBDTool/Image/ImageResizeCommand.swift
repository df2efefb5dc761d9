import ArgumentParser
import Block
import BlockDrivers
import BlockGraph
import NBDProtocol
import QCOW2

/// `nbd image resize`
struct ImageResizeCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "resize", abstract: "Make a disk longer or shorter.",
        discussion: "Example:  nbd image resize disk.qcow2 +10G")

    @Option(name: [.customShort("f"), .customLong("format")], help: "raw or qcow2; else the first bytes of the file decide.")
    var format: ImageFormat?

    @Flag(help: "Needed to make it shorter: what lies behind the new end is lost.")
    var shrink = false

    @Flag(name: .shortAndLong, help: "Print nothing.")
    var quiet = false

    @Option(help: "A directory from which images may name files; several times. Their own is always allowed.")
    var allowPath: [String] = []

    @Argument(help: "The image.")
    var file: String

    // An array, because nothing else may begin with a dash.
    @Argument(parsing: .allUnrecognized, help: "The new size; +SIZE and -SIZE count from the old one.")
    var sizes: [String] = []

    private var size: String { sizes.first ?? "" }

    func validate() throws {
        guard sizes.count == 1 else { throw ValidationError("Expected one size, such as 20G, +5G or -5G") }
    }

    func run() async throws {
        let chain = try await ImageChain.open(file, format, ImageRules(allowed: allowPath, probesFormat: true), RawOptions())
        let opened = chain.images[0]
        let old = opened.byteCount
        let new = try wanted(old)
        guard new >= old || shrink else {
            throw ToolError.runtime("'\(file)': \(new) bytes are fewer than the \(old) there are: --shrink allows to lose what lies behind")
        }
        if let image = opened.image {
            try await withImageErrors(file) { () throws(ImageError) in
                try await image.resize(to: new, mayShrink: shrink, dataFile: opened.dataFile)
            }
            if new > old { try await zero(from: old, chain) } else { await chain.close() }
        } else {
            do throws(BlockError) { try await opened.file.resize(to: new) } catch { throw ToolError.runtime("'\(file)': \(error.detail)") }
            await chain.close()
        }
        if !quiet { print("Image resized.") }
    }

    private func wanted(_ old: UInt64) throws(ToolError) -> UInt64 {
        let sign = size.first == "+" || size.first == "-" ? size.first : nil
        guard let amount = ByteSize.parse(sign == nil ? size[...] : size.dropFirst()) else {
            throw .usage("Invalid size '\(size.sanitized())'")
        }
        switch sign {
        case "+":
            guard amount <= ByteSize.limit - old else { throw .usage("'\(size)' is too much") }
            return old + amount
        case "-":
            guard amount < old else { throw .runtime("'\(file)' has only \(old) bytes") }
            return old - amount
        default: return amount
        }
    }

    /// Something would be seen behind the old end.
    private func needsZeroes(_ image: ImageFile, from old: UInt64, to end: UInt64, _ below: UInt64) async throws(ToolError) -> Bool {
        if below > old { return true }
        return try await withImageErrors(file) { () throws(ImageError) in
            let map = try await ImageMap(image)
            var offset = old
            while offset < end {
                let run = try await map.run(at: offset, limit: end - offset)
                switch run.kind {
                case .unallocated, .zero: offset += run.byteCount
                case .data, .compressed: return true
                }
            }
            return false
        }
    }

    /// What is new reads as zeroes: not as what a longer image below has there, nor as what is left of a disk that was once longer.
    private func zero(from old: UInt64, _ chain: ImageChain) async throws(ToolError) {
        guard let image = chain.images[0].image else { return }
        let geometry = image.header.geometry
        let tableEnd = (old / geometry.l2CoverByteCount + 1) * geometry.l2CoverByteCount
        let below = chain.images.dropFirst().first?.byteCount ?? 0
        let end = min(max(tableEnd, below), image.header.virtualByteCount)
        guard try await needsZeroes(image, from: old, to: end, below) else { return await chain.close() }
        let graph = Graph()
        let device = try await chain.add(to: graph).face
        if let range = ByteRange(start: old, count: end - min(old, end)), !range.isEmpty {
            do throws(BlockError) {
                try await device.writeZeroes(range, .mayUnmap)
                try await device.flush()
            } catch {
                throw .runtime("'\(file)': \(error.detail)")
            }
        }
        await graph.close()
    }
}
