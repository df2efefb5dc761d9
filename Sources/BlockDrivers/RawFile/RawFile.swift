public import Block
internal import HostIO

/// A file or disk of this host whose bytes are the device's bytes.
///
/// Regular files and block devices take the same way: `HostFile` knows the difference. Size exact (S-EXP-06, S-BUG-13), requests of any
/// alignment in every cache mode.
///
/// Opened with `RawOptions.isGrowable` its size may change; otherwise `resize` fails, and a request behind the end is a mistake of its
/// caller.
public final class RawFile: ResizableDevice {
    public let info: DeviceInfo
    /// As it was given to `open`.
    public let path: String
    /// Whether other programs are warned of our use of the image; false when locking was not wanted or the file system has no locks.
    public let isLocked: Bool
    private let file: HostFile
    private let options: RawOptions

    /// Opens `path`.
    ///
    /// - Throws: `.notADisk` for a directory, fifo, socket or character device; `.locked` when another program uses the image in a way
    ///   that does not agree with ours; otherwise what the options or the host say. `detectZeroes` is not this type's: see `openRaw`.
    public static func open(_ path: String, _ options: RawOptions = RawOptions()) async throws(OpenError) -> RawFile {
        if let contradiction = options.contradiction { throw OpenError(.invalidOptions, path: path, contradiction) }
        let file: HostFile
        do throws(HostError) {
            file = try await HostFile.open(path, options.hostOptions)
        } catch {
            // A directory cannot even be opened for writing.
            throw OpenError(error.name == "EISDIR" ? .notADisk : .host, path: path, error.reason)
        }
        if let what = file.kind.reasonNotToServe { throw OpenError(.notADisk, path: path, what) }
        guard file.byteCount <= UInt64(Int64.max) else {
            throw OpenError(.host, path: path, "its size, \(file.byteCount) bytes, is more than 2^63 - 1")
        }
        var isLocked = false
        if options.isLocked {
            do throws(HostError) {
                isLocked = try await file.lock()
            } catch {
                throw OpenError(.locked, path: path, error.reason)
            }
        }
        return RawFile(file, path, options, isLocked: isLocked)
    }

    /// Says to other programs, and to other openings of ours, that the bytes are those of an image format, or that the size will change: from now
    /// on nobody else may write, even if this file is read only. What was read before is to be read again.
    ///
    /// - Throws: `.locked` when somebody writes. The file is to be closed then.
    public func lockAsImage() async throws(OpenError) {
        guard isLocked else { return }
        do throws(HostError) {
            _ = try await file.lock(isImage: true)
        } catch {
            throw OpenError(.locked, path: path, error.reason)
        }
    }

    private init(_ file: HostFile, _ path: String, _ options: RawOptions, isLocked: Bool) {
        self.file = file
        self.path = path
        self.options = options
        self.isLocked = isLocked
        info = DeviceInfo(
            byteCount: file.byteCount,
            blockSize: BlockSize(minimum: 1, preferred: max(4096, UInt32(clamping: file.sectorByteCount)), maximum: 64 << 20),
            abilities: .allNative,
            isReadOnly: options.isReadOnly, isRotational: file.isRotational)
    }

    public func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        do throws(HostError) {
            try await file.read(at: offset, into: &buffer)
        } catch {
            throw BlockError(error)
        }
    }

    public var currentByteCount: UInt64 { file.currentByteCount }

    public func resize(to byteCount: UInt64) async throws(BlockError) {
        try checkWritable()
        guard options.isGrowable else { throw BlockError(.unsupported, "the device was not opened to be resized") }
        guard byteCount <= UInt64(Int64.max) else { throw BlockError(.tooLarge, "\(byteCount) bytes are more than 2^63 - 1") }
        do throws(HostError) {
            try await file.resize(to: byteCount)
        } catch {
            throw BlockError(error)
        }
    }

    public func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        try checkWritable()
        do throws(HostError) {
            try await file.write(at: offset, from: bytes, durable: isDurable(options))
        } catch {
            throw BlockError(error)
        }
    }

    public func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        try checkWritable()
        var how: ZeroOptions = []
        if isDurable(options) { how.insert(.durable) }
        if options.contains(.mayUnmap), self.options.discard == .unmap { how.insert(.mayUnmap) }
        if options.contains(.fast) { how.insert(.fast) }
        do throws(HostError) {
            try await file.writeZeroes(at: range.start, count: range.count, how)
        } catch {
            throw BlockError(error)
        }
    }

    public func discard(_ range: ByteRange) async throws(BlockError) {
        try checkWritable()
        // S-CMD-19: a no-op unless it was asked for at opening.
        guard options.discard == .unmap else { return }
        do throws(HostError) {
            try await file.discard(at: range.start, count: range.count)
            if options.cache.writesThrough { try await file.flush() }
        } catch {
            throw BlockError(error)
        }
    }

    public func flush() async throws(BlockError) {
        // S-CMD-21: nothing was written through a read-only opening. S-BLK-10: cache=unsafe asked for this.
        guard options.cache != .unsafe, !options.isReadOnly else { return }
        do throws(HostError) {
            try await file.flush()
        } catch {
            throw BlockError(error)
        }
    }

    public func prefetch(_ range: ByteRange) async throws(BlockError) {
        do throws(HostError) {
            try await file.prefetch(at: range.start, count: range.count)
        } catch {
            throw BlockError(error)
        }
    }

    public func status(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        do throws(HostError) {
            // One more than fits, so that the list learns that it is full.
            let room = min(extents.extentCountLimit - extents.extents.count, 65536) + 1
            for run in try await file.runs(at: range.start, count: range.count, limit: room) {
                guard extents.append(run.count, run.isHole ? [.hole, .zero] : .data) else { return }
            }
        } catch {
            throw BlockError(error)
        }
    }

    public func makeMapper() -> sending (any RangeMapper)? {
        RawMapper(file, mayWrite: !options.isReadOnly && !options.cache.writesThrough && !options.cache.isDirect)
    }

    /// Ends the use of the file, and with it the lock.
    public func close() async {
        file.close()
    }

    private func isDurable(_ options: WriteOptions) -> Bool {
        if self.options.cache == .unsafe { return false }
        return options.contains(.durable) || self.options.cache.writesThrough
    }

    private func checkWritable() throws(BlockError) {
        if options.isReadOnly { throw BlockError(.readOnly, "the device was opened read-only") }
    }
}

/// The device's bytes are the file's bytes.
private final class RawMapper: RangeMapper {
    private let file: HostFile
    private let mayWrite: Bool

    init(_ file: HostFile, mayWrite: Bool) {
        self.file = file
        self.mayWrite = mayWrite
    }

    var placesAreFixed: Bool { true }

    func mapRead(_ range: ByteRange, into segments: inout SegmentList) -> Bool {
        segments.append(.file(file, offset: range.start, count: Int(range.count)))
        return true
    }

    func mapWrite(_ range: ByteRange, into segments: inout SegmentList) -> Bool {
        guard mayWrite else { return false }
        segments.append(.file(file, offset: range.start, count: Int(range.count)))
        return true
    }
}

extension HostFile.Kind {
    /// Why a file of this kind has no bytes at offsets; nil when it has.
    fileprivate var reasonNotToServe: String? {
        switch self {
        case .regular, .blockDevice: nil
        case .directory: "it is a directory; an image is a regular file or a block device"
        case .fifo: "it is a named pipe; an image is a regular file or a block device"
        case .socket: "it is a socket; an image is a regular file or a block device"
        case .characterDevice: "it is a character device; an image is a regular file or a block device"
        case .other: "it is neither a regular file nor a block device"
        }
    }
}
