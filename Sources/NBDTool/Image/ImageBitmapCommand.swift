import ArgumentParser
import Block
import BlockDrivers
import QCOW2

/// `nbd image bitmap`
struct ImageBitmapCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bitmap", abstract: "Change a dirty bitmap that is stored in an image.",
        discussion: """
            Several actions are done in their order: `nbd image bitmap --add --disable --merge old disk.qcow2 new`. Each is durable before the \
            next begins.
            """)

    @Flag(help: "Actions, in any number and order.")
    var actions: [Action] = []

    @Option(help: "Add the bits of this bitmap.", transform: { $0 })
    var merge: [String] = []

    @Option(name: [.customShort("g"), .customLong("granularity")], help: "With --add: bytes for each bit, such as 64K.")
    var granularity: String?

    @Option(name: [.customShort("b"), .customLong("source-file")], help: "With --merge: the image that has the other bitmap.")
    var source: String?

    @Option(name: [.customShort("F"), .customLong("source-format")], help: "Its format: qcow2.")
    var sourceFormat: ImageFormat?

    @Option(name: [.customShort("f"), .customLong("format")], help: "qcow2; else the first bytes of the file decide.")
    var format: ImageFormat?

    @Argument(help: "The image.")
    var file: String

    @Argument(help: "The bitmap.")
    var bitmap: String

    enum Action: String, EnumerableFlag {
        case add, remove, clear, enable, disable
    }

    func validate() throws {
        guard !actions.isEmpty || !merge.isEmpty else {
            throw ValidationError("Need at least one of --add, --remove, --clear, --enable, --disable, --merge")
        }
        guard granularity == nil || actions.contains(.add) else { throw ValidationError("-g goes with --add") }
        guard source == nil || !merge.isEmpty else { throw ValidationError("-b goes with --merge") }
    }

    func run() async throws {
        var bytes: UInt64?
        if let granularity {
            guard let size = ByteSize.parse(granularity) else { throw ToolError.usage("Invalid granularity '\(granularity)'") }
            bytes = size
        }
        let opened = try await OpenedImage.open(file, format, isReadOnly: false)
        let image = try opened.qcow2("bitmaps")
        let name = Array(bitmap.utf8)
        for action in actions {
            try await withImageErrors(file) { () throws(ImageError) in
                switch action {
                case .add: try await image.addBitmap(name, granularity: bytes)
                case .remove: try await image.removeBitmap(name)
                case .clear: try await image.clearBitmap(name)
                case .enable: try await image.setBitmap(name, isEnabled: true)
                case .disable: try await image.setBitmap(name, isEnabled: false)
                }
            }
        }
        for other in merge { try await mergeBits(of: Array(other.utf8), into: name, of: image) }
        await opened.file.close()
    }

    private func mergeBits(of other: [UInt8], into name: [UInt8], of image: ImageFile) async throws(ToolError) {
        guard let source else {
            return try await withImageErrors(file) { () throws(ImageError) in try await image.mergeBitmap(other, into: name) }
        }
        let opened = try await OpenedImage.open(source, sourceFormat)
        let from = try opened.qcow2("bitmaps")
        let bits = try await withImageErrors(source) { () throws(ImageError) in try await from.bitmapBits(other) }
        await opened.file.close()
        try await withImageErrors(file) { () throws(ImageError) in try await image.mergeBitmap(bits, into: name) }
    }
}
