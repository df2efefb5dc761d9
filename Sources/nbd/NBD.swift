import NBDTool

/// The executable. Called as `qemu-nbd`, it behaves as that does.
@main
struct NBD {
    static func main() async {
        await Program.run(CommandLine.arguments)
    }
}
