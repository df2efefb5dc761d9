import ArgumentParser

/// `nbd image`: makes, checks and changes image files, after the model of qemu-img. Offline: no image may be in use meanwhile.
struct ImageCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "image",
        abstract: "Make, check and change image files.",
        discussion: "Options and output are shaped as those of qemu-img. See docs/image.md.",
        subcommands: [
            ImageCreateCommand.self, ImageInfoCommand.self, ImageCheckCommand.self, ImageMapCommand.self, ImageBitmapCommand.self,
            ImageSnapshotCommand.self, ImageResizeCommand.self, ImageConvertCommand.self,
        ])
}

/// How results are printed: for people, or as JSON.
struct ImageOutput: ParsableArguments {
    @Flag(help: "Print JSON.")
    var json = false

    @Option(help: ArgumentHelp("human or json, as qemu-img has it.", valueName: "format"))
    var output: OutputFormat?

    enum OutputFormat: String, ExpressibleByArgument, CaseIterable {
        case human, json
    }

    var isJSON: Bool { json || output == .json }
}

/// The format of an image: given, or, by the tools that look at images, found by its first bytes. Never found by a server: a guest can
/// write what a probe would find.
enum ImageFormat: String, ExpressibleByArgument, CaseIterable, Sendable {
    case raw, qcow2
}
