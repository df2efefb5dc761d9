#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Starting other processes and waiting for them.
enum Spawn {
    /// POSIX_SPAWN_SETSID, which the C libraries hide.
    #if canImport(Darwin)
    private static let newSessionFlag: Int32 = 0x400
    #else
    private static let newSessionFlag: Int32 = 0x80
    #endif

    /// Runs `/bin/sh -c script` with this process's environment and streams.
    ///
    /// - Throws: `.runtime` when there is no process to be had.
    static func shell(_ script: String) throws(ToolError) -> pid_t {
        try start("/bin/sh", arguments: ["/bin/sh", "-c", script], isSession: false)
    }

    /// Starts a process that has none of this one's signal settings.
    ///
    /// - Parameter arguments: argv, beginning with the name of the program; nil: this process's own, byte for byte (Swift's strings
    ///   would repair what is not UTF-8).
    /// - Parameter isSession: In a session of its own, away from the terminal.
    static func start(_ path: String, arguments: [String]?, isSession: Bool) throws(ToolError) -> pid_t {
        // SAFETY: the attributes are initialised before their first use and destroyed once; all pointers are valid during the
        // calls.
        var attributes = posix_spawnattr_t()
        unsafe posix_spawnattr_init(&attributes)
        defer { unsafe posix_spawnattr_destroy(&attributes) }
        var signals = sigset_t()
        unsafe sigemptyset(&signals)
        unsafe posix_spawnattr_setsigmask(&attributes, &signals)
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGPIPE] { unsafe sigaddset(&signals, signal) }
        unsafe posix_spawnattr_setsigdefault(&attributes, &signals)
        var flags = Int32(POSIX_SPAWN_SETSIGMASK) | Int32(POSIX_SPAWN_SETSIGDEF)
        if isSession { flags |= newSessionFlag }
        unsafe posix_spawnattr_setflags(&attributes, Int16(flags))
        var process: pid_t = 0
        let error: Int32
        // SAFETY: both vectors end with nil; the strings of the first are freed after the call, the second is the process's own.
        if let arguments {
            var vector = unsafe arguments.map { unsafe strdup($0) } + [nil]
            error = unsafe posix_spawn(&process, path, nil, &attributes, &vector, environ)
            unsafe vector.forEach { unsafe free($0) }
        } else {
            error = unsafe posix_spawn(&process, path, nil, &attributes, CommandLine.unsafeArgv, environ)
        }
        guard error == 0 else { throw .runtime("cannot run '\(path)': \(HostProcess.text(of: error))") }
        return process
    }

    /// Blocks until `process`, a child, has ended. Returns its exit code, or 128 and the number of the signal that ended it.
    static func wait(for process: pid_t) -> Int32 {
        var status: Int32 = 0
        // SAFETY: `status` is valid during the call.
        while unsafe waitpid(process, &status, 0) < 0 {
            guard errno == EINTR else { return 127 }
        }
        let signal = status & 0x7f
        return signal == 0 ? (status >> 8) & 0xff : 128 + signal
    }

    /// As `wait(for:)`, without holding up a thread of the concurrency pool.
    static func exitCode(of process: pid_t) async -> Int32 {
        await HostProcess.blocking { wait(for: process) }
    }

    /// Where the file of this program is.
    static func executablePath() -> String {
        #if canImport(Darwin)
        var size = UInt32(PATH_MAX)
        // SAFETY: the call gets a buffer of `size` bytes, and fills it with a NUL-terminated string or fails.
        return unsafe String(unsafeUninitializedCapacity: Int(size)) { buffer in
            unsafe buffer.withMemoryRebound(to: CChar.self) { text in
                guard let start = text.baseAddress, unsafe _NSGetExecutablePath(start, &size) == 0 else { return 0 }
                return unsafe strlen(start)
            }
        }
        #else
        return "/proc/self/exe"
        #endif
    }
}
