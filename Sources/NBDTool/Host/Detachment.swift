#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// `--fork`: the server goes to the background, and the command returns when it is serving (S-SRV-10).
///
/// A Swift process cannot fork: its other threads would be missing in the copy. So it starts itself again, in a session of its own, with
/// the writing end of a pipe that `NBD_DETACHED` names. The child writes one byte when it is ready; a pipe that closes without one means
/// that the child failed, and has said why on the standard error it shares until then.
struct Detachment: Sendable {
    private static let variable = "NBD_DETACHED"
    private let descriptor: Int32

    /// In the child: the way to tell the parent. nil in every other process.
    static func adopt() -> Detachment? {
        guard let text = HostProcess.variable(variable) else { return nil }
        HostProcess.set(variable: variable, to: nil)
        guard let descriptor = Int32(text), descriptor > 2, HostProcess.isOpen(descriptor) else { return nil }
        HostProcess.setCloseOnExec(descriptor, true)
        return Detachment(descriptor: descriptor)
    }

    /// In the parent: starts the child and waits until it serves or has failed.
    ///
    /// - Returns: The exit code for this process: 0 only when the child is serving.
    static func startChild() throws(ToolError) -> Int32 {
        let pipe = try HostProcess.makePipe()
        HostProcess.setCloseOnExec(pipe.write, false)
        HostProcess.set(variable: variable, to: String(pipe.write))
        let child = try Spawn.start(Spawn.executablePath(), arguments: nil, isSession: true)
        close(pipe.write)
        if !HostProcess.read(from: pipe.read, limit: 1).isEmpty { return 0 }
        let code = Spawn.wait(for: child)
        return code == 0 ? 1 : code
    }

    /// In the child, when it serves: lets go of the terminal, then of the parent.
    ///
    /// - Parameter keepsError: Logs still go where they went.
    func release(keepsError: Bool) {
        HostProcess.detachStandardStreams(keepsError: keepsError)
        HostProcess.write([1], to: descriptor)
        close(descriptor)
    }
}
