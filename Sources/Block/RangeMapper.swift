public import HostIO

/// The fast face of a device on one event loop: its caches need no lock. Optional: a driver without it is merely slower.
///
/// Formats *map*, the engine *moves*: a mapper only says where bytes lie, at once; it never does I/O.
public protocol RangeMapper: AnyObject {
    /// Appends where `range` lies now, in order, and returns true; or appends nothing and returns false ("await me").
    func mapRead(_ range: ByteRange, into segments: inout SegmentList) -> Bool
    /// The same for a plain write. A device that must act on each write (mark, allocate, refuse) returns false.
    func mapWrite(_ range: ByteRange, into segments: inout SegmentList) -> Bool
}

/// Where a run of a device's bytes lies.
public enum Segment: Sendable {
    /// `count` bytes of a host file from `offset` on.
    case file(HostFile, offset: UInt64, count: Int)
    /// `count` bytes that read as zeroes and have no place.
    case zeroes(count: Int)
}

/// The segments of one request, in order. Reused from request to request, so that mapping does not allocate.
public struct SegmentList {
    public private(set) var segments: [Segment] = []

    public init() { segments.reserveCapacity(8) }

    public mutating func append(_ segment: Segment) { segments.append(segment) }
    public mutating func removeAll() { segments.removeAll(keepingCapacity: true) }
}
