public import HostIO

/// The fast face of a device on one event loop: its caches need no lock. Optional: a driver without it is merely slower.
///
/// Formats *map*, the engine *moves*: a mapper only says where bytes lie, at once; it never does I/O.
public protocol RangeMapper: AnyObject {
    /// Appends where `range` lies now, in order, and returns true; or appends nothing and returns false ("await me").
    func mapRead(_ range: ByteRange, into segments: inout SegmentList) -> Bool
    /// The same for a plain write. A device that must act before each write (allocate, refuse) returns false.
    func mapWrite(_ range: ByteRange, into segments: inout SegmentList) -> Bool

    /// `range` has been written where `mapWrite` said, or that was tried and may have stopped half way; the client has no answer yet. For
    /// devices that keep account of writes (S-BLK-23).
    func didWrite(_ range: ByteRange)

    /// Whether each byte of the device has the same place in the same file for as long as the device is open. Replies may then be sent by
    /// reference: the client copies them out of the page cache, at some time after `released`.
    var placesAreFixed: Bool { get }

    /// Nothing that this mapper has said is in use any more: no write is under way, no reply that names its segments waits to be sent. For
    /// formats that move or free clusters: a freed one is used again only when every mapper has said so since. Called often.
    func released()
}

extension RangeMapper {
    public var placesAreFixed: Bool { false }
    public func didWrite(_ range: ByteRange) {}
    public func released() {}
}

/// Where a run of a device's bytes lies.
public enum Segment: Sendable {
    /// For those who name it and do not open it.
    public typealias File = HostFile

    /// `count` bytes of a host file from `offset` on.
    case file(HostFile, offset: UInt64, count: Int)
    /// `count` bytes that read as zeroes and have no place.
    case zeroes(count: Int)
}

/// The segments of one request, in order. Reused from request to request, so that mapping does not allocate.
public struct SegmentList {
    /// Most requests have no other. It lies here, and not in the array: so to look at it counts no references.
    public private(set) var first: Segment?
    /// Those behind the first.
    public private(set) var rest: [Segment] = []

    public init() { rest.reserveCapacity(8) }

    public var isEmpty: Bool { first == nil }
    /// The first, if there is no other.
    public var only: Segment? { rest.isEmpty ? first : nil }
    /// All of them, in an array of their own.
    public var all: [Segment] { first.map { [$0] + rest } ?? [] }

    public mutating func append(_ segment: Segment) {
        if first == nil { first = segment } else { rest.append(segment) }
    }

    public mutating func append(contentsOf other: SegmentList) {
        if let segment = other.first { append(segment) }
        rest += other.rest
    }

    /// Hands all of them over, in order: none is left.
    public mutating func takeAll(_ body: (consuming Segment) -> Void) {
        if let segment = first.take() { body(segment) }
        guard !rest.isEmpty else { return }
        for segment in rest { body(segment) }
        rest.removeAll(keepingCapacity: true)
    }

    public mutating func removeAll() {
        first = nil
        if !rest.isEmpty { rest.removeAll(keepingCapacity: true) }
    }
}
