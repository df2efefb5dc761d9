#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// A tmpfs of little room, for as long as the object lives. Needs root.
final class SmallFileSystem {
    static var isAvailable: Bool { geteuid() == 0 && tool("mount") != nil && tool("umount") != nil && access("/proc/mounts", R_OK) == 0 }

    private let scratch = Scratch()
    var path: String { scratch.path }

    /// Nil when the machine does not allow mounts.
    init?(byteCount: Int) {
        guard run(tool("mount")!, ["-t", "tmpfs", "-o", "size=\(byteCount)", "small", scratch.path]) == 0 else { return nil }
    }

    func makeReadOnly() -> Bool {
        run(tool("mount")!, ["-o", "remount,ro", path]) == 0
    }

    /// Makes a file that is one hole.
    func file(byteCount: Int) -> String {
        let file = "\(path)/disk"
        close(open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0o600))
        precondition(truncate(file, off_t(byteCount)) == 0)
        return file
    }

    deinit {
        _ = run(tool("umount")!, ["-l", path])
    }
}
