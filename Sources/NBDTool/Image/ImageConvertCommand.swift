import ArgumentParser
import Block
import BlockDrivers
import BlockGraph
import NBDProtocol
import QCOW2

/// `nbd image convert`
struct ImageConvertCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "convert",
        abstract: "Copy a disk into a new image, perhaps of another format.",
        discussion: "Holes and zeroes take no space in the copy. Example:  nbd image convert -O qcow2 -c disk.raw disk.qcow2")

    @Option(name: [.customShort("f"), .customLong("format")], help: "Of the source; else the first bytes of the file decide.")
    var format: ImageFormat?

    @Option(name: [.customShort("O"), .customLong("target-format")], help: "Of the copy: raw or qcow2.")
    var targetFormat = ImageFormat.raw

    @Option(name: [.customShort("o"), .customLong("options")], help: ArgumentHelp("As for `nbd image create`.", valueName: "key=value,…"))
    var options: [String] = []

    @Flag(name: [.customShort("c"), .customLong("compress")], help: "Compress the clusters of the copy (qcow2).")
    var compress = false

    @Option(name: [.customShort("l"), .customLong("snapshot")], help: "Copy this internal snapshot: id or name.")
    var snapshot: String?

    @Flag(name: [.customShort("U"), .customLong("force-share")], help: "Copy even if another program writes the source.")
    var isShared = false

    @Flag(name: .shortAndLong, help: "Print nothing.")
    var quiet = false

    @Option(help: "A directory from which images may name files; several times. Their own is always allowed.")
    var allowPath: [String] = []

    @Argument(help: "The image to copy.")
    var source: String

    @Argument(help: "The file to make.")
    var target: String

    func run() async throws {
        let rules = ImageRules(allowed: allowPath, probesFormat: true)
        guard !compress || targetFormat == .qcow2 else { throw ToolError.usage("-c goes with -O qcow2") }
        let chain = try await ImageChain.open(source, format, rules, RawOptions(isReadOnly: true, isLocked: !isShared))
        let graph = Graph()
        let device = try await chain.add(to: graph, snapshot: snapshot.map { SnapshotSelector(idOrName: $0) }).face
        var arguments = ["-q", "-f", targetFormat.rawValue]
        for option in options { arguments += ["-o", option] }
        let plan = try ImageCreationPlan(
            try ImageCreateCommand.parse(arguments + ["--", target, String(device.info.byteCount)]))
        guard plan.options.backingFileName == nil else { throw ToolError.usage("a copy holds the whole disk: it has no backing file") }
        guard !compress || (plan.options.dataFile == nil && plan.options.preallocation == .off) else {
            throw ToolError.usage("-c goes neither with a data file nor with preallocation")
        }
        let made = try await plan.run(sources: chain.files)
        do {
            try await copy(device, rules)
        } catch {
            made.remove()
            throw error
        }
        await graph.close()
    }

    /// Fills the new image.
    private func copy(_ device: any BlockDevice, _ rules: ImageRules) async throws(ToolError) {
        let opened = try await ImageChain.open(target, targetFormat, rules, RawOptions())
        if compress, let image = opened.images[0].image {
            try await withCopyErrors { () throws(CopyError) in try await DiskCopy.compress(device, into: image) }
            await opened.close()
        } else {
            let target = Graph()
            let copy = try await opened.add(to: target).face
            try await withCopyErrors { () throws(CopyError) in try await DiskCopy.copy(device, to: copy) }
            await target.close()
        }
    }

    private func withCopyErrors(_ body: () async throws(CopyError) -> Void) async throws(ToolError) {
        do throws(CopyError) {
            try await body()
        } catch {
            switch error {
            case .reading(let reason): throw .runtime("'\(source)': \(reason.detail.sanitized(limit: 400))")
            case .writing(let reason): throw .runtime("'\(target)': \(reason.detail.sanitized(limit: 400))")
            case .image(let reason): throw .runtime("'\(target)': \(reason.description.sanitized(limit: 400))")
            }
        }
    }
}
