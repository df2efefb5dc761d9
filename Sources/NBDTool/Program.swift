import ArgumentParser

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// The whole program behind `main`.
public enum Program {
    /// Runs the personality that the name in `arguments[0]` asks for, `qemu-nbd` or `nbd`, and ends the process with its exit code.
    public static func run(_ arguments: [String]) async -> Never {
        let name = arguments.first?.split(separator: "/").last
        let rest = Array(arguments.dropFirst())
        if name == "qemu-nbd" { exit(await QEMUNBDPersonality.run(rest)) }
        exit(await runCommand(rest))
    }

    /// The way to `serve` is short: to look at all commands takes a third of the time that the parser needs. Whatever is wrong, or asks for help, is
    /// seen by the whole.
    private static func parse(_ arguments: [String]) throws -> any ParsableCommand {
        if arguments.first == ServeCommand._commandName, let serve = try? ServeCommand.parse(Array(arguments.dropFirst())) { return serve }
        return try NBDCommand.parseAsRoot(arguments)
    }

    private static func runCommand(_ arguments: [String]) async -> Int32 {
        do {
            var command = try parse(arguments)
            if var asynchronous = command as? any AsyncParsableCommand {
                try await asynchronous.run()
            } else {
                try command.run()
            }
            return 0
        } catch let code as ExitCode {
            return code.rawValue
        } catch {
            // Help and versions that were asked for come here, too.
            let code = NBDCommand.exitCode(for: error)
            let isSuccess = code == ExitCode.success
            let text = isSuccess ? NBDCommand.fullMessage(for: error) : "nbd: " + NBDCommand.message(for: error)
            HostProcess.write(Array((text + "\n").utf8), to: isSuccess ? 1 : 2)
            return code.rawValue
        }
    }
}
