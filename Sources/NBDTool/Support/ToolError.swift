/// Why the tool cannot do what it was asked: one line for the person who typed the command.
///
/// Exit codes (docs/serve.md): 0 done · 1 it failed while running, and every failure of the `qemu-nbd` personality · 64 the command line
/// or the configuration file is wrong (EX_USAGE).
struct ToolError: Error, Equatable, CustomStringConvertible {
    enum Kind: Equatable {
        case usage
        case runtime
    }

    var kind: Kind
    /// Names the option, key or file at fault; one line, without the name of the program.
    var message: String

    var description: String { message }

    static func usage(_ message: String) -> ToolError { ToolError(kind: .usage, message: message) }
    static func runtime(_ message: String) -> ToolError { ToolError(kind: .runtime, message: message) }

    var exitCode: Int32 { kind == .usage ? 64 : 1 }
}
