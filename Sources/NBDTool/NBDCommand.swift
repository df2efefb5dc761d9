import ArgumentParser

/// `nbd`: one executable, one subcommand for each thing to do.
struct NBDCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "nbd",
        abstract: "Network block devices: serve disks, look at them, and measure.",
        version: "nbd \(Version.current)",
        subcommands: [ServeCommand.self, InfoCommand.self, ListCommand.self, BenchCommand.self, ImageCommand.self])
}
