import Dispatch
import Logging
import NBDServer
import Synchronization

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Ends the server, whoever asks: a signal, the end of the parent process, the end of the command of `--run`.
final class Stopper: Sendable {
    private struct State {
        var server: NBDServer?
        var isStopping = false
        var child: pid_t?
        /// What SIGHUP does in a server that it does not end.
        var reload: (@Sendable () -> Void)?
    }

    private let state = Mutex(State())
    /// Files may be on a disk that does not answer: neither signals nor tasks wait for them.
    private let reloads = DispatchQueue(label: "nbd.reload")
    private let childExit = Mutex<Task<Int32, Never>?>(nil)
    private let files: OwnedFiles
    private let logger: Logger
    private let willStop: @Sendable () -> Void
    private let parent = getppid()

    /// - Parameter willStop: Called once, when the server is told to end.
    init(files: OwnedFiles, logger: Logger, willStop: @escaping @Sendable () -> Void) {
        self.files = files
        self.willStop = willStop
        self.logger = logger
    }

    /// From now on the first SIGTERM or SIGINT finishes what is in flight, and the second ends the process at once. One that comes while
    /// the server starts is remembered until it has: to leave in the middle would leave socket files behind.
    ///
    /// - Parameter hangupStops: SIGHUP does the same; otherwise it does what `adopt(reload:)` says.
    func listen(hangupStops: Bool) throws(ToolError) {
        let signals = try StopSignals([SIGTERM, SIGINT, SIGHUP])
        Task {
            var count = 0
            for await number in signals.stream {
                if number == SIGHUP && !hangupStops {
                    if let reload = state.withLock({ $0.reload }) { reloads.async(execute: reload) } else { logger.notice("SIGHUP does nothing") }
                    continue
                }
                count += 1
                if count > 1 {
                    files.removeAll()
                    exit(1)
                }
                stop("signal \(number)")
            }
        }
    }

    /// Ends the server when the parent process has ended. By looking four times a second: the kernel's own notice (PR_SET_PDEATHSIG)
    /// means the parent's thread, not the parent.
    func watchParent() {
        Task {
            while getppid() == parent { try await Task.sleep(for: .milliseconds(250)) }
            stop("the parent process has ended")
        }
    }

    func adopt(reload: @escaping @Sendable () -> Void) { state.withLock { $0.reload = reload } }

    func adopt(_ server: NBDServer) {
        let isLate = state.withLock { state in
            state.server = server
            return state.isStopping
        }
        if isLate { end(server) }
    }

    /// The server ends when `child` does.
    func adopt(child: pid_t) {
        state.withLock { $0.child = child }
        childExit.withLock {
            $0 = Task { [self] in
                let code = await Spawn.exitCode(of: child)
                state.withLock { $0.child = nil }
                stop("the command has ended")
                return code
            }
        }
    }

    /// How the child ended, after asking it to if it has not; nil: there was none.
    func childExitCode() async -> Int32? {
        guard let exit = childExit.withLock({ $0 }) else { return nil }
        // Under the lock the number is still that of the child: it is forgotten there once the child was waited for.
        state.withLock { if let child = $0.child { _ = kill(child, SIGTERM) } }
        return await exit.value
    }

    private func stop(_ reason: String) {
        let (isFirst, server) = state.withLock { state in
            defer { state.isStopping = true }
            return (!state.isStopping, state.server)
        }
        guard isFirst else { return }
        logger.info("stopping: \(reason)")
        if let server { end(server) }
    }

    private func end(_ server: NBDServer) {
        willStop()
        server.shutdown()
    }
}
