import ArgumentParser
import Block
import BlockDrivers
import QCOW2

/// `nbd image snapshot`
struct ImageSnapshotCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "snapshot", abstract: "List, take, apply or delete the internal snapshots of an image.",
        subcommands: [List.self, Create.self, Apply.self, Delete.self])

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(commandName: "list", abstract: "List the snapshots.")
        @OptionGroup var output: ImageOutput
        @Flag(name: [.customShort("U"), .customLong("force-share")], help: "Look even if another program writes the image.")
        var isShared = false
        @Argument(help: "The image.")
        var file: String

        func run() async throws {
            let opened = try await OpenedImage.open(file, isLocked: !isShared)
            let image = try opened.qcow2("snapshots")
            let snapshots = try await withImageErrors(file) { () throws(ImageError) in try await image.snapshots() }
            await opened.file.close()
            if output.isJSON {
                print(JSON.array(snapshots.map(ImageReport.json)).text)
            } else if !snapshots.isEmpty {
                print((["Snapshot list:"] + ImageReport.table(snapshots)).joined(separator: "\n"))
            }
        }
    }

    struct Create: AsyncParsableCommand {
        static let configuration = CommandConfiguration(commandName: "create", abstract: "Keep the disk as it is now.")
        @Argument(help: "The image.")
        var file: String
        @Argument(help: "What the snapshot is to be called.")
        var name: String

        func run() async throws {
            let time = CalendarTime.now
            try await change(file) { image throws(ImageError) in try await image.createSnapshot(Array(name.utf8), time: time) }
        }
    }

    struct Apply: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "apply", abstract: "Make the disk what it was; later changes are lost.", discussion: "Not while the image has bitmaps.")
        @Argument(help: "The image.")
        var file: String
        @Argument(help: "Id or name of the snapshot.")
        var snapshot: String

        func run() async throws {
            try await change(file) { image throws(ImageError) in try await image.applySnapshot(Array(snapshot.utf8)) }
        }
    }

    struct Delete: AsyncParsableCommand {
        static let configuration = CommandConfiguration(commandName: "delete", abstract: "Forget a snapshot.")
        @Argument(help: "The image.")
        var file: String
        @Argument(help: "Name of the snapshot.")
        var snapshot: String

        func run() async throws {
            try await change(file) { image throws(ImageError) in try await image.deleteSnapshot(named: Array(snapshot.utf8)) }
        }
    }

    private static func change<T>(_ file: String, _ body: (ImageFile) async throws(ImageError) -> T) async throws(ToolError) {
        let opened = try await OpenedImage.open(file, isReadOnly: false)
        let image = try opened.qcow2("snapshots")
        _ = try await withImageErrors(file) { () throws(ImageError) in try await body(image) }
        await opened.file.close()
    }
}
