internal import CHostIO
internal import SystemPackage

/// Transfers past the page cache (O_DIRECT) for callers of any alignment.
///
///     request      |----|==================|---|
///                  head  whole blocks       tail      head and tail through the page cache, the middle past it,
///                                                     through an aligned bounce buffer when the memory is not aligned
///
/// A buffered write leaves a dirty page, which may hold stale neighbours of its bytes; were it written back after a direct write to those
/// neighbours, acknowledged data would be lost. So a write that has a head or a tail excludes direct writes meanwhile, and the kernel
/// brings its page to the disk before the next direct write to it begins.
final class DirectAccess: Sendable {
    private let direct: Int32
    private let buffered: Int32
    /// Alignment of offsets and lengths, and of memory; powers of two.
    private let blockByteCount: Int
    private let memoryAlignment: Int
    /// From here on, no whole block follows: direct writes would make the file longer.
    private let blocksEnd: UInt64
    /// Writes of whole blocks share it, others are alone.
    private let writers = WriteGate()

    /// Most bytes of a bounce buffer.
    private static let bounceByteLimit = 1 << 20
    /// Longer copies are a thread's work: nobody else should wait for them.
    private static let copyByteLimit = 128 << 10

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
        // Head and tail need single blocks, never what follows them.
        _ = chostio_random_access(buffered)
        guard memory > 0, offset > 0, memoryAlignment.nonzeroBitCount == 1, blockByteCount.nonzeroBitCount == 1 else {
            throw HostError(.notSupported, "open", path: path, detail: "the file cannot be used with O_DIRECT")
        }
    }

    deinit {
        _ = chostio_close(direct)
    }

    func retire() {
        _ = chostio_retire(direct)
    }

    /// Returns the bytes read, fewer only at the end of the file, or a negated errno.
    func read(into memory: BorrowedMemory, at offset: UInt64, by io: any FileIO) async -> Int {
        var done = 0
        for piece in pieces(count: memory.count, at: offset) {
            let part = memory.part(done, piece.count)
            let at = offset + UInt64(done)
            let result =
                piece.isDirect
                ? await readBlocks(into: part, at: at, by: io) : await io.read(buffered, into: part, at: at, isDirect: false)
            guard result >= 0 else { return result }
            done += result
            if result < piece.count { break }
        }
        return done
    }

    /// `read` for who runs on a loop with a ring; false when the range is not whole blocks, or as `FileIO.beginRead` says.
    func beginRead(_ count: Int, at offset: UInt64, by io: any FileIO, then done: @escaping @Sendable (BorrowedMemory?) -> Void) -> Bool {
        guard (offset | UInt64(count)) % UInt64(blockByteCount) == 0, offset + UInt64(count) <= blocksEnd, memoryAlignment <= RingMemory.alignment
        else { return false }
        return io.beginRead(direct, count, at: offset, then: done)
    }

    /// Returns 0 or a negated errno.
    func write(from memory: BorrowedMemory, at offset: UInt64, dsync: Bool, by io: any FileIO) async -> Int {
        let pieces = pieces(count: memory.count, at: offset)
        await writers.enter(alone: !pieces.allSatisfy(\.isDirect))
        defer { writers.leave() }
        var done = 0
        for piece in pieces {
            let part = memory.part(done, piece.count)
            let at = offset + UInt64(done)
            let result =
                piece.isDirect
                ? await writeBlocks(from: part, at: at, dsync: dsync, by: io)
                : await io.write(buffered, from: part, at: at, dsync: dsync, isDirect: false)
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

    private func readBlocks(into memory: BorrowedMemory, at offset: UInt64, by io: any FileIO) async -> Int {
        if memory.isAligned(to: memoryAlignment) { return await io.read(direct, into: memory, at: offset, isDirect: true) }
        return await withBounceBuffer(memory.count) { bounce in
            var done = 0
            while done < memory.count {
                let part = bounce.part(0, min(bounce.count, memory.count - done))
                let result = await io.read(direct, into: part, at: offset + UInt64(done), isDirect: true)
                guard result >= 0 else { return result }
                await Self.copy(part.part(0, result), to: memory.part(done, result), by: io)
                done += result
                if result < part.count { break }
            }
            return done
        }
    }

    private func writeBlocks(from memory: BorrowedMemory, at offset: UInt64, dsync: Bool, by io: any FileIO) async -> Int {
        if memory.isAligned(to: memoryAlignment) {
            return await io.write(direct, from: memory, at: offset, dsync: dsync, isDirect: true)
        }
        return await withBounceBuffer(memory.count) { bounce in
            var done = 0
            while done < memory.count {
                let part = bounce.part(0, min(bounce.count, memory.count - done))
                await Self.copy(memory.part(done, part.count), to: part, by: io)
                let result = await io.write(direct, from: part, at: offset + UInt64(done), dsync: dsync, isDirect: true)
                guard result >= 0 else { return result }
                done += part.count
            }
            return 0
        }
    }

    private static func copy(_ source: BorrowedMemory, to target: BorrowedMemory, by io: any FileIO) async {
        guard source.count > copyByteLimit else { return target.copy(from: source) }
        await io.call { target.copy(from: source) }
    }

    /// Lends `body` an aligned buffer of at most `wanted` bytes, whole blocks.
    private func withBounceBuffer(_ wanted: Int, _ body: (BorrowedMemory) async -> Int) async -> Int {
        let count = min(wanted, max(Self.bounceByteLimit, blockByteCount))
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: max(memoryAlignment, 16))
        defer { unsafe bytes.deallocate() }
        // SAFETY: freed after `body` has returned, and `body` keeps nothing of it.
        return await body(unsafe BorrowedMemory(bytes))
    }
}
