internal import CHostIO
internal import SystemPackage

#if canImport(Darwin)
internal import Darwin
#elseif canImport(Musl)
internal import Musl
#else
internal import Glibc
#endif

/// Transfers past the page cache (O_DIRECT) for callers of any alignment.
///
///     request      |----|==================|---|
///                  head  whole blocks       tail      head and tail through the page cache, the middle past it,
///                                                     through an aligned bounce buffer when the memory is not aligned
///
/// A buffered write leaves a dirty page, which may hold stale neighbours of its bytes; were it written back after a direct write to those
/// neighbours, acknowledged data would be lost. So a write that has a head or a tail excludes direct writes meanwhile, and the kernel
/// brings its page to the disk before the next direct write to it begins.
///
/// Synchronous: runs on the pool's threads.
// SAFETY: `@unchecked Sendable`: all is constant but the lock, which is made for that and initialised once at an address of its own.
@safe final class DirectAccess: @unchecked Sendable {
    private let direct: Int32
    private let buffered: Int32
    /// Alignment of offsets and lengths, and of memory; powers of two.
    private let blockByteCount: Int
    private let memoryAlignment: Int
    /// From here on, no whole block follows: direct writes would make the file longer.
    private let blocksEnd: UInt64
    private let writers: UnsafeMutablePointer<pthread_rwlock_t>

    /// Most bytes of a bounce buffer.
    private static let bounceByteLimit = 1 << 20

    /// Takes over `direct`, also when it throws; borrows `buffered`.
    init(direct: Int32, buffered: Int32, path: String, byteCount: UInt64) throws(HostError) {
        self.direct = direct
        self.buffered = buffered
        var memory: UInt32 = 0
        var offset: UInt32 = 0
        // SAFETY: the call writes the two integers and keeps neither address.
        let result = unsafe chostio_direct_alignment(direct, &memory, &offset)
        if result < 0 {
            // Kernels before 6.1 and some file systems do not tell. A page's size has always been enough.
            memory = 4096
            offset = 4096
        }
        memoryAlignment = max(Int(memory), 1)
        blockByteCount = max(Int(offset), 1)
        blocksEnd = byteCount & ~(UInt64(blockByteCount) - 1)
        // SAFETY: allocated and initialised here, at an address that never changes; freed in `deinit`.
        unsafe writers = .allocate(capacity: 1)
        unsafe pthread_rwlock_init(writers, nil)
        // Head and tail need single blocks, never what follows them.
        _ = chostio_random_access(buffered)
        guard memory > 0, offset > 0, memoryAlignment.nonzeroBitCount == 1, blockByteCount.nonzeroBitCount == 1 else {
            throw HostError(.notSupported, "open", path: path, detail: "the file cannot be used with O_DIRECT")
        }
    }

    deinit {
        // SAFETY: initialised in `init`; nobody holds the lock, as whoever does also holds `self`.
        unsafe pthread_rwlock_destroy(writers)
        unsafe writers.deallocate()
        _ = chostio_close(direct)
    }

    func retire() {
        _ = chostio_retire(direct)
    }

    /// Returns the bytes read, fewer only at the end of the file, or a negated errno.
    func read(into memory: BorrowedMemory, at offset: UInt64) -> Int {
        var done = 0
        for piece in pieces(count: memory.count, at: offset) {
            let part = memory.part(done, piece.count)
            let at = offset + UInt64(done)
            let result = piece.isDirect ? readBlocks(into: part, at: at) : PositionalIO.read(buffered, into: part, at: at)
            guard result >= 0 else { return result }
            done += result
            if result < piece.count { break }
        }
        return done
    }

    /// Returns 0 or a negated errno.
    func write(from memory: BorrowedMemory, at offset: UInt64, dsync: Bool) -> Int {
        let pieces = pieces(count: memory.count, at: offset)
        // SAFETY: the lock lives as long as `self`.
        if pieces.allSatisfy(\.isDirect) {
            unsafe pthread_rwlock_rdlock(writers)
        } else {
            unsafe pthread_rwlock_wrlock(writers)
        }
        defer { unsafe pthread_rwlock_unlock(writers) }
        var done = 0
        for piece in pieces {
            let part = memory.part(done, piece.count)
            let at = offset + UInt64(done)
            let result =
                piece.isDirect
                ? writeBlocks(from: part, at: at, dsync: dsync) : PositionalIO.write(buffered, from: part, at: at, dsync: dsync)
            guard result >= 0 else { return result }
            done += piece.count
        }
        return 0
    }

    private struct Piece {
        var count: Int
        var isDirect: Bool
    }

    /// Head, whole blocks, tail; empty ones left out.
    private func pieces(count: Int, at offset: UInt64) -> [Piece] {
        let mask = UInt64(blockByteCount) - 1
        let end = offset + UInt64(count)
        let first = min((offset + mask) & ~mask, end)
        let last = max(min(end & ~mask, blocksEnd), first)
        return [
            Piece(count: Int(first - offset), isDirect: false),
            Piece(count: Int(last - first), isDirect: true),
            Piece(count: Int(end - last), isDirect: false),
        ].filter { $0.count > 0 }
    }

    private func readBlocks(into memory: BorrowedMemory, at offset: UInt64) -> Int {
        if memory.isAligned(to: memoryAlignment) { return PositionalIO.read(direct, into: memory, at: offset) }
        return withBounceBuffer(memory.count) { bounce in
            var done = 0
            while done < memory.count {
                let part = bounce.part(0, min(bounce.count, memory.count - done))
                let result = PositionalIO.read(direct, into: part, at: offset + UInt64(done))
                guard result >= 0 else { return result }
                memory.part(done, result).copy(from: part.part(0, result))
                done += result
                if result < part.count { break }
            }
            return done
        }
    }

    private func writeBlocks(from memory: BorrowedMemory, at offset: UInt64, dsync: Bool) -> Int {
        if memory.isAligned(to: memoryAlignment) { return PositionalIO.write(direct, from: memory, at: offset, dsync: dsync) }
        return withBounceBuffer(memory.count) { bounce in
            var done = 0
            while done < memory.count {
                let part = bounce.part(0, min(bounce.count, memory.count - done))
                part.copy(from: memory.part(done, part.count))
                let result = PositionalIO.write(direct, from: part, at: offset + UInt64(done), dsync: dsync)
                guard result >= 0 else { return result }
                done += part.count
            }
            return 0
        }
    }

    /// Lends `body` an aligned buffer of at most `wanted` bytes, whole blocks.
    private func withBounceBuffer(_ wanted: Int, _ body: (BorrowedMemory) -> Int) -> Int {
        let count = min(wanted, max(Self.bounceByteLimit, blockByteCount))
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: max(memoryAlignment, 16))
        defer { unsafe bytes.deallocate() }
        // SAFETY: freed after `body` has returned, and `body` keeps nothing of it.
        return unsafe body(BorrowedMemory(bytes))
    }
}
