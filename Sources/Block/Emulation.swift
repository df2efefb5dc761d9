/// Any device, for callers of any alignment and length: what the device does not do itself is done here, with what it does.
///
/// - Ranges outside of the device and writes to a read-only one are refused.
/// - Requests that cut blocks of `blockSize.minimum` bytes are read, modified and written; they and all writes that overlap them happen one
///   after the other.
/// - Longer requests than `blockSize.maximum` are cut; zeroes become writes of a bounded buffer; durable writes are followed by a flush.
///
/// A device whose size is no multiple of its minimum block loses the bytes behind the last whole block (S-EXP-06).
public final class Emulation: BlockDevice {
    /// As seen by callers: minimum block 1, zeroes and durable writes native.
    public let info: DeviceInfo
    /// The device that does the work.
    public let device: any BlockDevice
    private let minimum: UInt64
    private let maximum: UInt64
    private let inner: Abilities
    /// Used when blocks can be cut, that is when `minimum` is above 1.
    private let lock = RangeLock()

    /// Most bytes of zeroes written at once.
    private static let zeroBufferByteLimit: UInt64 = 1 << 20

    public init(_ device: any BlockDevice) {
        self.device = device
        minimum = UInt64(device.info.blockSize.minimum)
        inner = device.info.abilities
        maximum = UInt64(device.info.blockSize.maximum)
        var info = device.info
        info.byteCount &= ~(minimum - 1)
        info.blockSize = BlockSize(minimum: 1, preferred: info.blockSize.preferred, maximum: max(info.blockSize.maximum, 64 << 20))
        info.abilities.zeroes = .native
        info.abilities.durableWrites = .native
        info.abilities.fastZeroes = inner.zeroes == .native && inner.fastZeroes == .native ? .native : .none
        if info.abilities.flush == .emulated { info.abilities.flush = .native }
        self.info = info
    }

    public func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        let range = try checked(offset, UInt64(buffer.byteCount))
        guard !range.isEmpty else { return }
        if range.isAligned(to: minimum), range.count <= maximum {
            return try await device.read(at: offset, into: &buffer)
        }
        var done = 0
        while done < buffer.byteCount {
            let rest = range.dropFirst(UInt64(done))
            let piece = firstPiece(of: rest)
            let length = Int(piece.count)
            if piece.isAligned(to: minimum) {
                var part = buffer._mutatingExtracting(done..<done + length)
                try await device.read(at: piece.start, into: &part)
            } else {
                let block = try await readBlock(around: piece)
                let skip = Int(piece.start & (minimum - 1))
                var part = buffer._mutatingExtracting(done..<done + length)
                part.copy(from: block.rawBytes.extracting(skip..<skip + length))
            }
            done += length
        }
    }

    public func write(at offset: UInt64, from bytes: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        let range = try checkedForWriting(offset, UInt64(bytes.byteCount))
        guard !range.isEmpty else { return }
        let ticket = await acquire(range)
        defer { release(ticket) }
        let passed = passedOn(options)
        var done = 0
        while done < bytes.byteCount {
            let piece = firstPiece(of: range.dropFirst(UInt64(done)))
            let length = Int(piece.count)
            let part = bytes.extracting(done..<done + length)
            if piece.isAligned(to: minimum) {
                try await device.write(at: piece.start, from: part, passed)
            } else {
                try await modifyBlock(around: piece, with: part, passed)
            }
            done += length
        }
        try await flushIfAsked(options)
    }

    public func writeZeroes(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        let range = try checkedForWriting(range.start, range.count)
        guard !range.isEmpty else { return }
        let aligned = minimum == 1 ? range : range.shrunk(toMultiplesOf: minimum)
        // Decided before anything changes (P-CMD-ZERO-2, S-CMD-16). A range without a whole block would be read, modified and written.
        if options.contains(.fast), info.abilities.fastZeroes != .native || aligned == nil { throw Self.notFast() }
        let ticket = await acquire(range)
        defer { release(ticket) }
        let passed = passedOn(options)
        if let aligned {
            var isDone = false
            if inner.zeroes == .native {
                do throws(BlockError) {
                    try await device.writeZeroes(aligned, passed)
                    isDone = true
                } catch where error.kind == .unsupported && !options.contains(.fast) {
                    // A device may learn only now that it cannot; writing always works.
                }
            }
            if !isDone { try await writeZeroBuffers(aligned, passed.intersection(.durable)) }
            try await zeroPartOfBlock(range.prefix(aligned.start - range.start), passed.intersection(.durable))
            try await zeroPartOfBlock(range.dropFirst(aligned.end - range.start), passed.intersection(.durable))
        } else {
            let head = range.prefix(firstPiece(of: range).count)
            try await zeroPartOfBlock(head, passed.intersection(.durable))
            try await zeroPartOfBlock(range.dropFirst(head.count), passed.intersection(.durable))
        }
        try await flushIfAsked(options)
    }

    public func discard(_ range: ByteRange) async throws(BlockError) {
        let range = try checkedForWriting(range.start, range.count)
        guard !range.isEmpty, inner.discard == .native else { return }
        // Blocks that are only partly in the range stay. Nothing to lock: bytes under a discard are undefined meanwhile anyway.
        guard let aligned = minimum == 1 ? range : range.shrunk(toMultiplesOf: minimum) else { return }
        do throws(BlockError) {
            try await device.discard(aligned)
        } catch where error.kind == .unsupported {
            // S-CMD-17: a hint that nobody takes is no failure.
        }
    }

    public func flush() async throws(BlockError) {
        guard inner.flush != .none, !info.isReadOnly else { return }
        try await device.flush()
    }

    public func prefetch(_ range: ByteRange) async throws(BlockError) {
        let range = try checked(range.start, range.count)
        guard !range.isEmpty, inner.prefetch == .native else { return }
        try await device.prefetch(blocks(around: range))
    }

    public func status(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        try await ask(.status, of: range, otherwise: .data, into: &extents)
    }

    public func allocationDepth(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        try await ask(.allocationDepth, of: range, otherwise: .depth(1), into: &extents)
    }

    public func makeMapper() -> sending (any RangeMapper)? {
        guard let mapper = device.makeMapper() else { return nil }
        return minimum == 1 ? mapper : AlignedReadMapper(mapper, minimum: minimum)
    }

    public func settle() async { await device.settle() }

    public func close() async {
        await device.close()
    }
}

// MARK: - Extents

extension Emulation {
    private enum Question { case status, allocationDepth }

    private func ask(_ question: Question, _ range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        switch question {
        case .status: try await device.status(of: range, into: &extents)
        case .allocationDepth: try await device.allocationDepth(of: range, into: &extents)
        }
    }

    /// - Parameter silence: what it means when the device says nothing.
    private func ask(
        _ question: Question, of range: ByteRange, otherwise silence: ExtentStatus, into extents: inout ExtentList
    ) async throws(BlockError) {
        let range = try checked(range.start, range.count)
        guard !range.isEmpty else { return }
        if range.isAligned(to: minimum) { return try await ask(question, range, into: &extents) }
        // Of the blocks around the range, the part inside. The device may answer for less than the part before the range: ask on.
        var rest = blocks(around: range)
        while rest.start <= range.start {
            var found = ExtentList(byteCountLimit: rest.count, extentCountLimit: extents.extentCountLimit)
            try await ask(question, rest, into: &found)
            var position = rest.start
            for extent in found.extents {
                guard let run = ByteRange(start: position, count: extent.count) else { break }
                let inside = run.clamped(to: range)
                position = run.end
                if !inside.isEmpty, !extents.append(inside.count, extent.status) { return }
            }
            guard found.byteCount > 0 else {
                extents.append(range.count, silence)
                return
            }
            rest = rest.dropFirst(found.byteCount)
        }
    }
}

// MARK: - Pieces

extension Emulation {
    /// What can be done first: the rest of a cut block, or as many whole blocks as the device takes at once.
    private func firstPiece(of range: ByteRange) -> ByteRange {
        let intoBlock = range.start & (minimum - 1)
        if intoBlock > 0 || range.count < minimum { return range.prefix(minimum - intoBlock) }
        return range.prefix(min(range.count & ~(minimum - 1), maximum))
    }

    /// All blocks that `range` touches. In bounds: the device ends with a whole block.
    private func blocks(around range: ByteRange) -> ByteRange {
        let start = range.start & ~(minimum - 1)
        let end = (range.end + (minimum - 1)) & ~(minimum - 1)
        return ByteRange(start: start, count: end - start) ?? range
    }

    private func readBlock(around piece: ByteRange) async throws(BlockError) -> [UInt8] {
        var block = [UInt8](repeating: 0, count: Int(minimum))
        var span = block.mutableSpan
        // SAFETY: every bit pattern is a byte.
        var bytes = unsafe span.mutableBytes
        try await device.read(at: piece.start & ~(minimum - 1), into: &bytes)
        return block
    }

    private func modifyBlock(around piece: ByteRange, with part: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        var block = try await readBlock(around: piece)
        let skip = Int(piece.start & (minimum - 1))
        var span = block.mutableSpan
        // SAFETY: every bit pattern is a byte.
        var bytes = unsafe span.mutableBytes
        var target = bytes._mutatingExtracting(skip..<skip + part.byteCount)
        target.copy(from: part)
        try await device.write(at: piece.start & ~(minimum - 1), from: block.rawBytes, options)
    }

    private func zeroPartOfBlock(_ piece: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        guard !piece.isEmpty else { return }
        let zeroes = [UInt8](repeating: 0, count: Int(piece.count))
        try await modifyBlock(around: piece, with: zeroes.rawBytes, options)
    }

    private func writeZeroBuffers(_ range: ByteRange, _ options: WriteOptions) async throws(BlockError) {
        let limit = max(min(Self.zeroBufferByteLimit, maximum) & ~(minimum - 1), minimum)
        let zeroes = [UInt8](repeating: 0, count: Int(min(range.count, limit)))
        var rest = range
        while !rest.isEmpty {
            let piece = rest.prefix(limit)
            try await device.write(at: piece.start, from: zeroes.rawBytes.extracting(first: Int(piece.count)), options)
            rest = rest.dropFirst(piece.count)
        }
    }
}

// MARK: - Rules

extension Emulation {
    private func checked(_ offset: UInt64, _ count: UInt64) throws(BlockError) -> ByteRange {
        guard let range = ByteRange(start: offset, count: count, within: info.byteCount) else {
            throw .outOfRange(offset: offset, count: count, size: info.byteCount)
        }
        return range
    }

    private func checkedForWriting(_ offset: UInt64, _ count: UInt64) throws(BlockError) -> ByteRange {
        // Read-only comes first: S-REQ-11.
        if info.isReadOnly { throw Self.readOnly() }
        return try checked(offset, count)
    }

    /// The options that the device understands.
    private func passedOn(_ options: WriteOptions) -> WriteOptions {
        inner.durableWrites == .native ? options : options.subtracting(.durable)
    }

    private func flushIfAsked(_ options: WriteOptions) async throws(BlockError) {
        if options.contains(.durable), inner.durableWrites != .native { try await flush() }
    }

    private func acquire(_ range: ByteRange) async -> RangeLock.Ticket? {
        guard minimum > 1 else { return nil }
        // Whole blocks: two writes to different bytes of one block must not meet either.
        return await lock.acquire(blocks(around: range))
    }

    private func release(_ ticket: RangeLock.Ticket?) {
        if let ticket { lock.release(ticket) }
    }

    @inline(never) private static func readOnly() -> BlockError { BlockError(.readOnly, "the device is read-only") }
    @inline(never) private static func notFast() -> BlockError {
        BlockError(.unsupported, "zeroing this range is not faster than writing zeroes to it")
    }
}

/// Maps reads of whole blocks. Writes wait for each other in the emulation, so they are not mapped.
private final class AlignedReadMapper: RangeMapper {
    private let mapper: any RangeMapper
    private let minimum: UInt64

    init(_ mapper: any RangeMapper, minimum: UInt64) {
        self.mapper = mapper
        self.minimum = minimum
    }

    func mapRead(_ range: ByteRange, into segments: inout SegmentList) -> Bool {
        range.isAligned(to: minimum) && mapper.mapRead(range, into: &segments)
    }

    func mapWrite(_ range: ByteRange, into segments: inout SegmentList) -> Bool { false }

    var placesAreFixed: Bool { mapper.placesAreFixed }

    func released() { mapper.released() }
}
