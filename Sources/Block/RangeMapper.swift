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

extension SegmentList {
    /// Fills `buffer` from the segments, in order, if none of them has to wait for a disk. After false its bytes are undefined: await.
    ///
    /// - Precondition: the segments are as long as the buffer: they were mapped for it.
    public func readNow(into buffer: inout MutableRawSpan) -> Bool {
        if segments.count == 1, case .file(let file, let offset, let count) = segments[0], count == buffer.byteCount {
            return file.readNow(at: offset, into: &buffer)
        }
        var done = 0
        for segment in segments {
            switch segment {
            case .file(let file, let offset, let count):
                var part = buffer._mutatingExtracting(done..<done + count)
                guard file.readNow(at: offset, into: &part) else { return false }
                done += count
            case .zeroes(let count):
                var part = buffer._mutatingExtracting(done..<done + count)
                part.fillWithZeroes()
                done += count
            }
        }
        return done == buffer.byteCount
    }

    /// Writes `bytes` to the segments if that needs no waiting. After false any part may have been written: await all of it.
    public func writeNow(from bytes: RawSpan) -> Bool {
        var done = 0
        for segment in segments {
            guard case .file(let file, let offset, let count) = segment else { return false }
            guard file.writeNow(at: offset, from: bytes.extracting(done..<done + count)) else { return false }
            done += count
        }
        return done == bytes.byteCount
    }
}
