public import NBDProtocol

#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// Another NBD server, alive while this value is: qemu-nbd or nbdkit on a Unix socket in a directory of its own.
public final class Peer {
    public let directory: String
    public var socket: String { directory + "/socket" }

    /// - Parameters:
    ///   - image: bytes of the raw image `$directory/image`.
    ///   - command: a shell command that returns once the server listens on `$directory/socket`, with its process id in `$directory/pid`.
    public init?(_ command: String, image: String) {
        guard let made = Self.output("mktemp -d"), !made.isEmpty else { return nil }
        directory = made
        guard Self.output("cd '\(made)' && \(image) && \(command) >log 2>&1 && echo up") == "up" else { return nil }
    }

    deinit {
        _ = Self.output("kill \"$(cat '\(directory)/pid')\"; rm -rf '\(directory)'")
    }

    public static func qemuNBD(_ arguments: String = "-x disk -D 'a disk'", image: String = "truncate -s 10M image") -> Peer? {
        Peer("qemu-nbd -t -f raw --fork --pid-file=\"$PWD/pid\" -k \"$PWD/socket\" \(arguments) image", image: image)
    }

    public static func nbdkit(_ arguments: String) -> Peer? {
        Peer("nbdkit -U \"$PWD/socket\" -P \"$PWD/pid\" \(arguments)", image: "true")
    }

    public func uri(_ export: String) -> NBDURI { NBDURI(.unix(path: socket), exportName: export) }

    public static func isInstalled(_ program: String) -> Bool { output("command -v \(program)")?.isEmpty == false }

    /// What a shell command prints, without the last newline; nil if it fails to start.
    public static func output(_ command: String) -> String? {
        // SAFETY: the stream does not leave this function, which closes it once.
        guard let stream = unsafe popen(command, "r") else { return nil }
        var result: [UInt8] = []
        while true {
            let byte = unsafe getc(stream)
            guard byte >= 0 else { break }
            result.append(UInt8(truncatingIfNeeded: byte))
        }
        unsafe pclose(stream)
        if result.last == UInt8(ascii: "\n") { result.removeLast() }
        return String(decoding: result, as: UTF8.self)
    }
}
