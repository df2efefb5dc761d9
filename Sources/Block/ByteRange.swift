/// A run of bytes whose end is known to fit in 64 bits.
///
/// Numbers from strangers become a `ByteRange` before anyone adds to them: every way in checks for overflow, so `end` and the arithmetic
/// below cannot trap.
public struct ByteRange: Equatable, Hashable, Sendable {
    /// First byte, counted from the start of the device.
    public let start: UInt64
    /// Length in bytes; may be 0.
    public let count: UInt64

    /// Makes a range, or nil when `start + count` does not fit in 64 bits.
    public init?(start: UInt64, count: UInt64) {
        guard !start.addingReportingOverflow(count).overflow else { return nil }
        self.start = start
        self.count = count
    }

    /// Makes a range, or nil when any part of it lies beyond `size`. An empty range at `size` is inside (S-REQ-13).
    public init?(start: UInt64, count: UInt64, within size: UInt64) {
        guard start <= size, count <= size - start else { return nil }
        self.start = start
        self.count = count
    }

    /// The range of all bytes of a device of `size` bytes.
    public init(ofDevice size: UInt64) {
        start = 0
        count = size
    }

    /// The first byte after the range.
    public var end: UInt64 { start &+ count }
    public var isEmpty: Bool { count == 0 }

    /// The part of this range that lies inside `other`; empty (at a clamped start) when they do not meet.
    public func clamped(to other: ByteRange) -> ByteRange {
        let low = min(max(start, other.start), other.end)
        let high = max(low, min(end, other.end))
        return ByteRange(uncheckedStart: low, count: high - low)
    }

    /// The first `maximum` bytes, or the whole range when it is shorter.
    public func prefix(_ maximum: UInt64) -> ByteRange {
        ByteRange(uncheckedStart: start, count: min(count, maximum))
    }

    /// What remains after the first `taken` bytes; empty at the end when `taken` exceeds the range.
    public func dropFirst(_ taken: UInt64) -> ByteRange {
        let taken = min(taken, count)
        return ByteRange(uncheckedStart: start + taken, count: count - taken)
    }

    public func overlaps(_ other: ByteRange) -> Bool {
        !isEmpty && !other.isEmpty && start < other.end && other.start < end
    }

    /// The largest range inside this one whose ends are multiples of `alignment` (a power of two); nil when there is none.
    public func shrunk(toMultiplesOf alignment: UInt64) -> ByteRange? {
        let mask = alignment - 1
        let (low, overflow) = start.addingReportingOverflow(mask)
        guard !overflow else { return nil }
        let first = low & ~mask
        let last = end & ~mask
        return first < last ? ByteRange(uncheckedStart: first, count: last - first) : nil
    }

    /// Whether both ends are multiples of `alignment` (a power of two).
    public func isAligned(to alignment: UInt64) -> Bool {
        (start | count) & (alignment - 1) == 0
    }

    private init(uncheckedStart: UInt64, count: UInt64) {
        start = uncheckedStart
        self.count = count
    }
}

extension ByteRange: CustomStringConvertible {
    public var description: String { "bytes \(start)..<\(end)" }
}
