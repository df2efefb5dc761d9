#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Where `name` is found on this machine, or nil.
func tool(_ name: String) -> String? {
    (["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"] as [String]).map { "\($0)/\(name)" }.first { access($0, X_OK) == 0 }
}

/// A program that runs beside the test.
struct Child {
    let id: pid_t

    init?(_ path: String, _ arguments: [String], quiet: Bool = true) {
        var id: pid_t = 0
        var words: [UnsafeMutablePointer<CChar>?] = ([path] + arguments).map { strdup($0) } + [nil]
        defer { for word in words { free(word) } }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        if quiet {
            posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0)
            posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0)
        }
        // The threads of a test block signals, and a child would inherit that: it could not be stopped.
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var none = sigset_t()
        sigemptyset(&none)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
        guard posix_spawn(&id, path, &actions, &attributes, &words, environ) == 0 else { return nil }
        self.id = id
    }

    /// Returns the exit code; 128 + signal when it was killed.
    func wait() -> Int32 {
        var status: Int32 = 0
        while waitpid(id, &status, 0) < 0, errno == EINTR {}
        return status & 0x7f == 0 ? (status >> 8) & 0xff : 128 + (status & 0x7f)
    }

    /// Ends it and waits for the end. Asks again and again: qemu-nbd loses a SIGTERM that comes while it starts.
    func stop() {
        for round in 0..<200 where isRunning {
            kill(id, round < 100 ? SIGTERM : SIGKILL)
            usleep(20_000)
        }
        _ = wait()
    }

    var isRunning: Bool {
        var information = siginfo_t()
        // WNOWAIT: the exit code stays for `wait`.
        guard waitid(P_PID, id_t(id), &information, WEXITED | WNOHANG | WNOWAIT) == 0 else { return false }
        return information.si_signo == 0
    }
}

@discardableResult
func run(_ path: String, _ arguments: [String], quiet: Bool = true) -> Int32 {
    Child(path, arguments, quiet: quiet)?.wait() ?? 127
}
