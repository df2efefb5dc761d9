internal import CHostIO
internal import Synchronization
internal import SystemPackage

/// Byte-range locks by which programs that use disk images agree, compatible with QEMU's.
///
/// For each permission `p` a user of an image holds a read lock on byte `100 + p` when it has the permission, and on byte `200 + p` when it
/// does not let others have it; then it looks whether anybody else's locks contradict. The locks belong to the open file, so they end
/// with it, also when the process dies.
///
///     permission               consistent read 0   write 1     write unchanged 2   resize 3
///     a reader holds           100                                                      203
///     a writer holds           100                 101, 201                             203
///     a reader of an image     100                      201                             203
///     a writer of an image     100                 101, 201                        103, 203
///
/// An image is a file whose bytes are those of an image format: whoever reads it while another writes may take one disk's data for another's,
/// and its size changes. Facts: asked of the kernel while qemu-nbd 7.2 had them. Its writers of raw files do not hold 201, so two of them share
/// a file; ours do, so that at most one writer of any make has it.
enum FileLock {
    private enum Permission: UInt64, CaseIterable {
        case consistentRead, write, writeUnchanged, resize

        var heldByte: UInt64 { 100 + rawValue }
        var refusedByte: UInt64 { 200 + rawValue }
        var name: String {
            switch self {
            case .consistentRead: "consistent read"
            case .write: "write"
            case .writeUnchanged: "write unchanged"
            case .resize: "resize"
            }
        }
    }

    enum Outcome: Equatable {
        case locked
        /// The file system has no locks.
        case unavailable
    }

    static func take(_ descriptor: Int32, path: String, isReadOnly: Bool, isImage: Bool) throws(HostError) -> Outcome {
        let held: [Permission] = isReadOnly ? [.consistentRead] : isImage ? [.consistentRead, .write, .resize] : [.consistentRead, .write]
        let refused: [Permission] = isReadOnly && !isImage ? [.resize] : [.write, .resize]
        var taken: [UInt64] = []
        do throws(HostError) {
            for byte in held.map(\.heldByte) + refused.map(\.refusedByte) {
                let result = PositionalIO.retrying { chostio_lock_byte(descriptor, byte) }
                if isUnavailable(result) { return .unavailable }
                // Somebody's write lock: no program of QEMU's kind takes one, but it is a refusal.
                guard result >= 0 else { throw conflict(.write, path) }
                taken.append(byte)
            }
            for permission in held where try isLocked(descriptor, permission.refusedByte, path) { throw conflict(permission, path) }
            for permission in refused where try isLocked(descriptor, permission.heldByte, path) { throw sharing(permission, path) }
            return .locked
        } catch {
            for byte in taken { _ = chostio_unlock_byte(descriptor, byte) }
            throw error
        }
    }

    /// Gives back all that `take` may have taken.
    static func release(_ descriptor: Int32) {
        for permission in Permission.allCases {
            _ = chostio_unlock_byte(descriptor, permission.heldByte)
            _ = chostio_unlock_byte(descriptor, permission.refusedByte)
        }
    }

    private static func isLocked(_ descriptor: Int32, _ byte: UInt64, _ path: String) throws(HostError) -> Bool {
        let result = PositionalIO.retrying { chostio_is_byte_locked(descriptor, byte) }
        guard result >= 0 else { throw HostError(Errno(rawValue: CInt(-result)), "lock", path: path) }
        return result == 1
    }

    private static func isUnavailable(_ result: Int) -> Bool {
        guard result < 0 else { return false }
        let code = Errno(rawValue: CInt(-result))
        return PositionalIO.isUnsupported(result) || code == .invalidArgument || code == .noLocks
    }

    private static func conflict(_ permission: Permission, _ path: String) -> HostError {
        HostError(
            .resourceBusy, "lock", path: path,
            detail: "Failed to get \"\(permission.name)\" lock. Is another process using the image [\(path)]?")
    }

    private static func sharing(_ permission: Permission, _ path: String) -> HostError {
        HostError(
            .resourceBusy, "lock", path: path,
            detail: "Failed to get shared \"\(permission.name)\" lock. Is another process using the image [\(path)]?")
    }
}

extension HostFile {
    /// Announces this file's use to other programs, in QEMU's way, for as long as the file is open: a reader tolerates readers and writers,
    /// a writer readers only, nobody a change of the size. Returns false where the file system has no locks: then nobody can be warned.
    /// May be called again for an image.
    ///
    /// - Parameter isImage: the bytes are those of an image format, or the size will change: even a reader tolerates no writer then.
    /// - Throws: EBUSY when another program's use, or another opening of ours, contradicts.
    public func lock(isImage: Bool = false) async throws(HostError) -> Bool {
        let result = await io.call { () -> Result<FileLock.Outcome, HostError> in
            do throws(HostError) {
                return .success(try FileLock.take(self.descriptor, path: self.path, isReadOnly: self.isReadOnly, isImage: isImage))
            } catch {
                return .failure(error)
            }
        }
        let isLocked = try result.get() == .locked
        if isLocked { state.isLocked.store(true, ordering: .releasing) }
        return isLocked
    }

    /// Closing the file is not enough: a child that this process is just starting has a copy of the descriptor until it runs its program,
    /// and would keep the lock that long.
    func unlock() {
        if state.isLocked.exchange(false, ordering: .acquiringAndReleasing) { FileLock.release(descriptor) }
    }
}
