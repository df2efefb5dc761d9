internal import HostIO

/// How a raw file or disk is opened. The names and meanings are those of qemu-nbd's options of the same name.
public struct RawOptions: Equatable, Sendable {
    /// When data reaches the medium, and whether it passes the host's page cache.
    ///
    /// |                | page cache | durable after each write | flush        |
    /// |----------------|------------|--------------------------|--------------|
    /// | `writeback`    | yes        | no                       | yes          |
    /// | `writethrough` | yes        | yes                      | yes          |
    /// | `none`         | no         | no                       | yes          |
    /// | `directsync`   | no         | yes                      | yes          |
    /// | `unsafe`       | yes        | no, whatever is asked    | does nothing |
    public enum Cache: String, CaseIterable, Sendable {
        case writeback, writethrough, none, directsync, unsafe

        public var isDirect: Bool { self == .none || self == .directsync }
        public var writesThrough: Bool { self == .writethrough || self == .directsync }
    }

    public enum Discard: String, CaseIterable, Sendable {
        /// TRIM succeeds and does nothing; zeroes keep their space.
        case ignore
        /// TRIM, and zeroes that may, give space back to the host.
        case unmap
    }

    public enum DetectZeroes: String, CaseIterable, Sendable {
        case off
        /// Written zeroes are turned into "write zeroes", which keep their space.
        case on
        /// The same, and they may become holes.
        case unmap
    }

    /// Who waits for the disk. A wish, as results do not depend on it: see `refusal`.
    public enum AIO: String, CaseIterable, Sendable {
        /// `ioUring` where the host has it, `threads` elsewhere.
        case auto
        case threads
        /// Linux AIO in QEMU, io_uring here; asks for a cache mode without the page cache, as there.
        case native
        case ioUring = "io_uring"

        /// Why threads do this work instead, for the operator: "cannot use io_uring: the kernel has none (ENOSYS)". Nil when they do not, or
        /// may.
        public var refusal: String? { self == .ioUring || self == .native ? HostFile.ringRefusal?.description : nil }

        var usesRing: Bool { self != .threads }
    }

    public var isReadOnly: Bool
    public var cache: Cache
    public var discard: Discard
    public var detectZeroes: DetectZeroes
    public var aio: AIO
    /// Locks the image against other programs, in QEMU's way (S-BLK-15).
    public var isLocked: Bool
    /// The file may become longer and shorter while it is used, by its own user: it carries an image format. See `ResizableDevice`.
    public var isGrowable: Bool

    public init(
        isReadOnly: Bool = false, cache: Cache = .writeback, discard: Discard = .unmap, detectZeroes: DetectZeroes = .off,
        aio: AIO = .auto, isLocked: Bool = true, isGrowable: Bool = false
    ) {
        self.isReadOnly = isReadOnly
        self.cache = cache
        self.discard = discard
        self.detectZeroes = detectZeroes
        self.aio = aio
        self.isLocked = isLocked
        self.isGrowable = isGrowable
    }

    /// Why the options contradict each other, for the user; nil when they do not.
    public var contradiction: String? {
        if aio == .native, !cache.isDirect {
            return "aio=native needs a cache mode without the page cache: cache=none or cache=directsync, not cache=\(cache.rawValue)"
        }
        if detectZeroes == .unmap, discard == .ignore {
            return "detect-zeroes=unmap needs discard=unmap: with discard=ignore nothing may be unmapped"
        }
        return nil
    }

    var hostOptions: HostFile.Options {
        HostFile.Options(isReadOnly: isReadOnly, isDirect: cache.isDirect, usesRing: aio.usesRing, isGrowable: isGrowable)
    }
}

/// Why an image could not be opened. For the operator: it names the file.
public struct OpenError: Error, Equatable, Sendable, CustomStringConvertible {
    public enum Reason: Equatable, Sendable {
        /// The options make no sense, alone or for this file.
        case invalidOptions
        /// A directory, a fifo, a socket, a terminal.
        case notADisk
        /// Another program has it.
        case locked
        /// What the host answered.
        case host
    }

    public var reason: Reason
    public var path: String
    public var detail: String

    public init(_ reason: Reason, path: String, _ detail: String) {
        self.reason = reason
        self.path = path
        self.detail = detail
    }

    public var description: String { "Could not open '\(path)': \(detail)" }
}
