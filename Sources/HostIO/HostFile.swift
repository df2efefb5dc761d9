internal import CHostIO
internal import Synchronization
internal import SystemPackage

/// An open file or disk of this host, with every call that touches its bytes.
///
/// Nothing here has a position: calls may run at the same time. What may wait for the disk is `async` and waits on a thread of its own;
/// the faces ending in `Now` never wait and say no instead. The size is taken once, at opening, and exact (S-EXP-06).
///
/// After the host has failed to bring acknowledged data to the medium, every later write and flush fails with the same error: the kernel
/// reports such a loss once and then forgets it.
public final class HostFile: Sendable {
    public enum Kind: Equatable, Sendable {
        case regular, blockDevice, characterDevice, directory, fifo, socket, other
    }

    public struct Options: Sendable {
        public var isReadOnly: Bool
        /// O_DIRECT: past the page cache. Transfers of any alignment still work; those that are aligned are faster.
        public var isDirect: Bool
        /// Wait for the disk by io_uring, where the host has it (`HostFile.ringRefusal`), and not on threads.
        public var usesRing: Bool
        /// The file may become longer and shorter while it is used (`resize`, and writes behind its end).
        public var isGrowable: Bool

        public init(isReadOnly: Bool = false, isDirect: Bool = false, usesRing: Bool = false, isGrowable: Bool = false) {
            self.isReadOnly = isReadOnly
            self.isDirect = isDirect
            self.usesRing = usesRing
            self.isGrowable = isGrowable
        }
    }

    /// As it was given to `open`.
    public let path: String
    public let kind: Kind
    public let isReadOnly: Bool
    public let isDirect: Bool
    /// A regular file that was opened to be resized.
    public let isGrowable: Bool
    /// Bytes at the time of opening.
    public let byteCount: UInt64
    /// Bytes of a sector of a block device, the least that it discards or zeroes; 1 for files.
    public let sectorByteCount: Int
    /// The medium under the file turns, as far as the host knows.
    public let isRotational: Bool
    /// The file lives in memory (tmpfs): no call on it waits for a disk.
    public let isInMemory: Bool

    let descriptor: Int32
    /// Present in direct mode only.
    let direct: DirectAccess?
    /// Present where what is in memory can be sent from there: not in direct mode.
    let mapping: FileMapping?
    let io: any FileIO
    let state = State()
    let flushTurns = FlushTurns()

    /// What is learnt while the file is used.
    struct State: ~Copyable {
        let isClosed = Atomic<Bool>(false)
        let isLocked = Atomic<Bool>(false)
        /// The errno of the first failed write-back, or 0.
        let lostData = Atomic<Int32>(0)
        let lacks = Atomic<UInt32>(0)
        let stalls = StallGuard()
        /// Of a file that may be resized.
        let byteCount = Atomic<UInt64>(0)
    }

    /// Opens the file at `path`, following symbolic links; never creates one.
    ///
    /// - Throws: what the host says; in direct mode also ENOTSUP when the file cannot be used past the page cache.
    public static func open(_ path: String, _ options: Options = Options()) async throws(HostError) -> HostFile {
        try await open(path, options, ring: options.usesRing ? HostLoop.ringOfProcess : nil)
    }

    /// Why this process cannot have io_uring, for the operator; nil when it can. Files that wish for it use threads then.
    public static var ringRefusal: HostError? {
        if case .failure(let refusal) = HostLoop.ringOfProcess { refusal } else { nil }
    }

    /// - Parameter ring: used when there is one.
    static func open(_ path: String, _ options: Options, ring: Result<HostLoop, HostError>?) async throws(HostError) -> HostFile {
        let result = await ThreadedFileIO.shared.call { () -> Result<HostFile, HostError> in
            do throws(HostError) {
                return .success(try HostFile(opening: path, options, Self.io(ring)))
            } catch {
                return .failure(error)
            }
        }
        return try result.get()
    }

    private static func io(_ ring: Result<HostLoop, HostError>?) -> any FileIO {
        if case .success(let ring) = ring { RingFileIO(ring) } else { ThreadedFileIO() }
    }

    private init(opening path: String, _ options: Options, _ io: any FileIO) throws(HostError) {
        guard !path.utf8.contains(0) else { throw HostError(.invalidArgument, "open", path: path, detail: "the path contains a NUL byte") }
        descriptor = try Self.openDescriptor(path, isReadOnly: options.isReadOnly, isDirect: false)
        self.path = path
        isReadOnly = options.isReadOnly
        self.io = io
        var status = chostio_stat()
        // SAFETY (here and below): the calls fill the variables that they are given and keep no address.
        var result = unsafe chostio_stat(descriptor, &status)
        kind = result < 0 ? .other : Kind(mode: status.mode)
        var size = status.size
        var sector: UInt32 = 1
        if result >= 0, kind == .blockDevice {
            result = unsafe chostio_device_size(descriptor, &size)
            if result >= 0 { result = unsafe chostio_device_sector(descriptor, &sector) }
            if result >= 0, !options.isReadOnly, chostio_device_is_read_only(descriptor) == 1 {
                result = -Errno.readOnlyFileSystem.rawValue
            }
        }
        byteCount = size
        sectorByteCount = Int(sector)
        let fileSystem = FileSystem(rawValue: chostio_file_system(descriptor))
        isInMemory = fileSystem.isInMemory
        isRotational =
            kind == .blockDevice
            ? BlockQueue(major: status.node_major, minor: status.node_minor).isRotational
            : BlockQueue(major: status.device_major, minor: status.device_minor).isRotational
        isDirect = options.isDirect
        isGrowable = options.isGrowable && kind == .regular
        state.byteCount.store(size, ordering: .relaxed)
        mapping =
            result >= 0 && !options.isDirect && (kind == .regular || kind == .blockDevice)
            ? FileMapping(descriptor, byteCount: isGrowable ? Self.mappedByteCount(size) : size, isLocal: kind == .blockDevice || fileSystem.isLocal) : nil
        // Only a regular file or a disk can be read at an offset; others are opened to learn what they are.
        if result >= 0, options.isDirect, kind == .regular || kind == .blockDevice {
            do throws(HostError) {
                let second = try Self.openDescriptor(path, isReadOnly: options.isReadOnly, isDirect: true)
                direct = try DirectAccess(direct: second, buffered: descriptor, path: path, byteCount: isGrowable ? .max : size)
            } catch {
                direct = nil
                throw error
            }
        } else {
            direct = nil
        }
        // From here on `deinit` closes the descriptors.
        if result < 0 { throw HostError(Errno(rawValue: -result), "open", path: path) }
    }

    private static func openDescriptor(_ path: String, isReadOnly: Bool, isDirect: Bool) throws(HostError) -> Int32 {
        let result = PositionalIO.retrying {
            // SAFETY: Swift gives the string as a C string for the length of the call.
            unsafe chostio_open(path, !isReadOnly, isDirect)
        }
        guard result < 0 else { return Int32(result) }
        let code = Errno(rawValue: CInt(-result))
        let detail = isDirect && code == .invalidArgument ? "the file system does not support O_DIRECT" : nil
        throw HostError(code, "open", path: path, detail: detail)
    }

    deinit {
        unlock()
        _ = chostio_close(descriptor)
    }

    /// Gives the file back, and its locks with it; whatever is called later fails with EBADF. Does nothing the second time.
    ///
    /// The numbers stay taken until the object goes, so a call that is still in flight cannot hit somebody else's file.
    public func close() {
        guard !state.isClosed.exchange(true, ordering: .acquiringAndReleasing) else { return }
        unlock()
        _ = chostio_retire(descriptor)
        direct?.retire()
        mapping?.retire()
    }

    /// Bytes that the file takes up now.
    public func allocatedByteCount() throws(HostError) -> UInt64 {
        var status = chostio_stat()
        // SAFETY: the call fills the struct and does not keep its address.
        let result = unsafe chostio_stat(descriptor, &status)
        guard result >= 0 else { throw HostError(Errno(rawValue: -result), "stat", path: path) }
        return status.allocated
    }

    /// The number of the open file, for calls that this room does not have. Borrowed: valid while the object lives; the owner closes it.
    public var descriptorNumber: Int32 { descriptor }
}

extension HostFile.Kind {
    init(mode: UInt32) {
        self =
            switch chostio_file_type(mode) {
            case CHOSTIO_REGULAR: .regular
            case CHOSTIO_BLOCK: .blockDevice
            case CHOSTIO_CHARACTER: .characterDevice
            case CHOSTIO_DIRECTORY: .directory
            case CHOSTIO_FIFO: .fifo
            case CHOSTIO_SOCKET: .socket
            default: .other
            }
    }
}

/// Operations a file turned out not to have, so that they are asked for once and not with every request.
struct Lack: OptionSet {
    let rawValue: UInt32
    static let readNow = Lack(rawValue: 1 << 0)
    static let writeNow = Lack(rawValue: 1 << 1)
    static let dsync = Lack(rawValue: 1 << 2)
    static let punchHole = Lack(rawValue: 1 << 3)
    static let zeroRange = Lack(rawValue: 1 << 4)
    static let allocate = Lack(rawValue: 1 << 5)
    static let seekData = Lack(rawValue: 1 << 6)
    static let discard = Lack(rawValue: 1 << 7)
    static let zeroOut = Lack(rawValue: 1 << 8)
}

extension HostFile {
    func lacks(_ operation: Lack) -> Bool {
        Lack(rawValue: state.lacks.load(ordering: .relaxed)).contains(operation)
    }

    func remember(lackOf operation: Lack) {
        state.lacks.bitwiseOr(operation.rawValue, ordering: .relaxed)
    }

    /// Whether `result` says that the host has no such operation, which is then remembered.
    func isLack(of operation: Lack, _ result: Int) -> Bool {
        guard PositionalIO.isUnsupported(result) else { return false }
        remember(lackOf: operation)
        return true
    }

    /// - Throws: the error of an earlier write-back that lost data.
    func checkNothingLost(_ operation: String) throws(HostError) {
        let code = state.lostData.load(ordering: .relaxed)
        guard code != 0 else { return }
        throw HostError(
            Errno(rawValue: code), operation, path: path,
            detail: "an earlier write could not be brought to the medium; the file must be opened anew")
    }

    func rememberLoss(_ result: Int) {
        _ = state.lostData.compareExchange(expected: 0, desired: Int32(-result), ordering: .relaxed)
    }

    @inline(never) func error(_ result: Int, _ operation: String, detail: String? = nil) -> HostError {
        HostError(Errno(rawValue: CInt(-result)), operation, path: path, detail: detail)
    }
}
