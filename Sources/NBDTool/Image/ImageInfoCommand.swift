import ArgumentParser
import BlockDrivers
import NBDProtocol
import QCOW2

/// `nbd image info`
struct ImageInfoCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(commandName: "info", abstract: "Show what an image is.")

    @Option(name: [.customShort("f"), .customLong("format")], help: "raw or qcow2; else the first bytes of the file decide.")
    var format: ImageFormat?

    @Flag(name: .customLong("backing-chain"), help: "Also of the images below.")
    var chain = false

    @Flag(name: [.customShort("U"), .customLong("force-share")], help: "Look even if another program writes the image.")
    var isShared = false

    @OptionGroup var output: ImageOutput

    @Argument(help: "The image.")
    var file: String

    /// More images on top of each other are taken for a loop.
    static let chainLimit = 200

    func run() async throws {
        var reports: [ImageReport] = []
        var next: (path: String, format: ImageFormat?)? = (file, format)
        while let (path, format) = next {
            guard reports.count < Self.chainLimit, !reports.contains(where: { $0.path == path }) else {
                throw ToolError.runtime("'\(path)' is its own backing file, or the chain has more than \(Self.chainLimit) images")
            }
            let opened = try await OpenedImage.open(path, format, isLocked: !isShared)
            let report = try await ImageReport(opened)
            await opened.file.close()
            reports.append(report)
            next = chain ? report.backing : nil
        }
        if output.isJSON {
            print(chain ? JSON.array(reports.map(\.json)).text : reports[0].json.text)
        } else {
            print(reports.map(\.text).joined(separator: "\n\n"))
        }
    }
}
