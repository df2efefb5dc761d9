internal import Synchronization

/// Which blocks of a device were written since somebody last asked: what incremental backups live on.
///
/// In memory, whatever the device; a format that stores bitmaps fills one at opening and writes it back (`BitmapOwner`). `record` is called for
/// every write before it is answered (S-BLK-23), takes no lock and costs tens of nanoseconds; reading is as good as the moment (S-BST-11).
/// Memory is taken where something is dirty, at most `memoryByteLimit`; beyond it whole neighbourhoods are said to be dirty.
public final class DirtyBitmap: Sendable {
    /// What the bitmap is called, on its node and by clients (`qemu:dirty-bitmap:NAME`): 1 to 1023 bytes.
    public let name: String
    /// Of the device, in bytes.
    public let byteCount: UInt64
    /// Bytes of a block that is dirty or not: a power of two, 512 to 2 GiB.
    public let granularity: UInt64

    public static let granularityRange: ClosedRange<UInt64> = 512...2 << 30
    /// Between 4 KiB and 64 KiB, as QEMU chooses for devices without clusters.
    public static let defaultGranularity: UInt64 = 64 << 10
    /// Memory of one bitmap, in bytes.
    public static let memoryByteLimit = 256 << 20

    private struct State {
        var isEnabled: Bool
        var isReadOnly = false
        var isInconsistent = false
        var user: String?
    }

    private let bits: BitTree
    private let shift: UInt64
    private let state: Mutex<State>
    private let isRecording: Atomic<Bool>

    /// An empty bitmap.
    ///
    /// - Parameter nodeLimit: for tests.
    init(
        _ name: String, byteCount: UInt64, granularity: UInt64, isEnabled: Bool, nodeLimit: Int
    ) throws(BitmapError) {
        guard !name.isEmpty, name.utf8.count <= 1023, !name.utf8.contains(0) else {
            throw BitmapError(.invalid, name, "a name has 1 to 1023 bytes and no NUL")
        }
        guard Self.granularityRange.contains(granularity), granularity.nonzeroBitCount == 1 else {
            throw BitmapError(.invalid, name, "a granularity is a power of two from 512 bytes to 2 GiB, not \(granularity) bytes")
        }
        guard byteCount <= UInt64(Int64.max) else { throw BitmapError(.invalid, name, "\(byteCount) bytes are more than 2^63 - 1") }
        self.name = name
        self.byteCount = byteCount
        self.granularity = granularity
        shift = UInt64(granularity.trailingZeroBitCount)
        bits = BitTree(bitCount: max(byteCount >> shift, 1) + 1, nodeLimit: nodeLimit)
        state = Mutex(State(isEnabled: isEnabled))
        isRecording = Atomic(isEnabled)
    }

    /// An empty bitmap for a device of `byteCount` bytes.
    ///
    /// - Parameter isEnabled: whether writes are recorded.
    /// - Throws: `.invalid` for a name, size or granularity out of range.
    public convenience init(
        _ name: String, byteCount: UInt64, granularity: UInt64 = DirtyBitmap.defaultGranularity, isEnabled: Bool = true
    ) throws(BitmapError) {
        try self.init(name, byteCount: byteCount, granularity: granularity, isEnabled: isEnabled, nodeLimit: Self.memoryByteLimit >> 12)
    }

    // MARK: Marking

    /// `range` was written, or its write failed half way; not answered yet. Does nothing while the bitmap is not enabled.
    public func record(_ range: ByteRange) {
        if isRecording.load(ordering: .relaxed) { mark(range) }
    }

    /// Makes every block that `range` touches dirty, whether the bitmap is enabled or not.
    public func mark(_ range: ByteRange) {
        let range = range.clamped(to: ByteRange(ofDevice: byteCount))
        guard !range.isEmpty else { return }
        bits.set(range.start >> shift, through: (range.end - 1) >> shift)
    }

    // MARK: Reading

    /// The first run of dirty blocks in `range`, cut to it; nil when nothing is dirty there.
    public func nextDirtyArea(in range: ByteRange) -> ByteRange? {
        let range = range.clamped(to: ByteRange(ofDevice: byteCount))
        guard !range.isEmpty, let first = bits.first(true, from: range.start >> shift), first <= (range.end - 1) >> shift else { return nil }
        let start = max(first << shift, range.start)
        guard let clean = bits.first(false, from: first), clean <= (range.end - 1) >> shift else { return range.dropFirst(start - range.start) }
        return range.dropFirst(start - range.start).prefix((clean << shift) - start)
    }

    /// Bytes of blocks that are dirty; the last one counts as far as the device goes.
    public var dirtyByteCount: UInt64 {
        guard byteCount > 0 else { return 0 }
        let last = (byteCount - 1) >> shift
        let missing = bits.count(last, through: last) > 0 ? ((last + 1) << shift) - byteCount : 0
        return bits.count(0, through: last) << shift - missing
    }

    /// Memory that the bits take, in bytes.
    public var memoryByteCount: Int { bits.nodeCount << 12 }
}

// MARK: - Life

extension DirtyBitmap {
    /// Writes are recorded.
    public var isEnabled: Bool { state.withLock(\.isEnabled) }
    /// Nothing about it may change: it belongs to an image that cannot be written.
    public var isReadOnly: Bool { state.withLock(\.isReadOnly) }
    /// It was not stored properly: what it says is worth nothing, and it can only be removed.
    public var isInconsistent: Bool { state.withLock(\.isInconsistent) }
    /// Who uses it, for messages: while somebody does, nobody else may, nor change it (S-BST-11).
    public var user: String? { state.withLock(\.user) }
    public var isBusy: Bool { user != nil }

    /// - Throws: as `clear`.
    public func enable() throws(BitmapError) { try change { $0.isEnabled = true } }

    /// - Throws: as `clear`.
    public func disable() throws(BitmapError) { try change { $0.isEnabled = false } }

    /// Makes everything clean.
    ///
    /// - Throws: `.busy`, `.readOnly`, `.inconsistent`.
    public func clear() throws(BitmapError) { try change { _ in bits.clear() } }

    /// Makes everything dirty that is dirty in `other`, of whatever granularity.
    ///
    /// - Throws: as `clear`; the same for `other`, which may be read-only; `.invalid` when they are of devices of different sizes.
    public func merge(_ other: DirtyBitmap) throws(BitmapError) {
        guard other.byteCount == byteCount else {
            throw BitmapError(.invalid, name, "it cannot take '\(other.name)': they are of devices of \(byteCount) and \(other.byteCount) bytes")
        }
        try other.checkUsable()
        try change { _ in
            var rest = ByteRange(ofDevice: byteCount)
            while let area = other.nextDirtyArea(in: rest) {
                mark(area)
                rest = rest.dropFirst(area.end - rest.start)
            }
        }
    }

    /// For the owner of a stored bitmap, at opening.
    public func setReadOnly(_ isReadOnly: Bool) { state.withLock { $0.isReadOnly = isReadOnly } }

    /// For the owner of a stored bitmap, at opening: it records nothing, and nobody can use it.
    public func setInconsistent() {
        state.withLock { state in
            state.isInconsistent = true
            state.isEnabled = false
            isRecording.store(false, ordering: .relaxed)
        }
    }

    /// Makes the bitmap busy until `endUse` (S-EXP-15).
    ///
    /// - Parameter user: for messages: `export 'disk'`.
    /// - Throws: `.busy`, `.inconsistent`; a read-only bitmap is fine (S-EXP-14).
    public func beginUse(by user: String) throws(BitmapError) {
        try state.withLock { state throws(BitmapError) in
            try check(state)
            state.user = user
        }
    }

    public func endUse() { state.withLock { $0.user = nil } }

    /// - Throws: `.busy`, `.inconsistent` (S-EXP-14).
    public func checkUsable() throws(BitmapError) {
        try state.withLock { state throws(BitmapError) in try check(state) }
    }

    private func check(_ state: State) throws(BitmapError) {
        if let user = state.user { throw BitmapError(.busy, name, "it is in use by \(user)") }
        if state.isInconsistent {
            throw BitmapError(.inconsistent, name, "it was not stored properly and tells nothing; it can only be removed")
        }
    }

    private func change(_ body: (inout State) -> Void) throws(BitmapError) {
        try state.withLock { state throws(BitmapError) in
            try check(state)
            if state.isReadOnly { throw BitmapError(.readOnly, name, "its image cannot be written") }
            body(&state)
            isRecording.store(state.isEnabled, ordering: .relaxed)
        }
    }
}

// MARK: - As a metadata context

extension DirtyBitmap: ExtentSource {
    /// Dirty blocks are `.dirty`, others nothing, cut to `range` (S-BST-09, S-BST-10).
    public func extents(of range: ByteRange, into list: inout ExtentList) async throws(BlockError) {
        // A search through much memory (millions of words) stops now and then, so that others get their turn.
        let stepByteCount = max(range.count / UInt64(bits.nodeCount / 4096 + 1), granularity)
        var rest = range
        while !rest.isEmpty {
            var piece = rest.prefix(stepByteCount)
            rest = rest.dropFirst(piece.count)
            var areaCount = 0
            while let area = nextDirtyArea(in: piece) {
                list.append(area.start - piece.start, [])
                guard list.append(area.count, .dirty) else { return }
                piece = piece.dropFirst(area.end - piece.start)
                areaCount += 1
                if areaCount % 8192 == 0 { await Task.yield() }
            }
            guard list.append(piece.count, []) || piece.isEmpty else { return }
            if !rest.isEmpty { await Task.yield() }
        }
    }
}

/// Why a bitmap cannot be made, changed or used.
public struct BitmapError: Error, Equatable, Sendable, CustomStringConvertible {
    public enum Reason: Equatable, Sendable {
        case invalid, notFound, busy, readOnly, inconsistent
        /// It could change while its reader believes that it does not (S-EXP-12).
        case enabled
    }

    public var reason: Reason
    public var bitmap: String
    public var detail: String

    public init(_ reason: Reason, _ bitmap: String, _ detail: String) {
        self.reason = reason
        self.bitmap = bitmap
        self.detail = detail
    }

    public var description: String { "bitmap '\(bitmap)': \(detail)" }
}
