internal import HostIO

extension Segment {
    public var byteCount: Int {
        switch self {
        case .file(_, _, let count), .zeroes(let count): count
        }
    }

    /// Whether the bytes can be sent from where they lie, without waiting for a disk.
    public var isAtHand: Bool {
        switch self {
        case .file(let file, let offset, let count): file.isAtHand(offset, count)
        case .zeroes: true
        }
    }

    /// Appends the segment's bytes to `output`, which has room for them, if that can be done without waiting for a disk.
    public func readNow(into output: inout OutputRawSpan) -> Bool {
        switch self {
        case .file(let file, let offset, let count):
            return file.readNow(at: offset, count: count, into: &output)
        case .zeroes(let count):
            // SAFETY: `append` checks the capacity; zero is a byte.
            unsafe output.append(repeating: 0, count: count, as: UInt8.self)
            return true
        }
    }

    /// Writes `bytes`, as many as the segment has, if that can be done without waiting for a disk. After false some of them may have been
    /// written.
    public func writeNow(from bytes: RawSpan) -> Bool {
        switch self {
        case .file(let file, let offset, let count):
            precondition(bytes.byteCount == count, "\(bytes.byteCount) bytes for a segment of \(count)")
            return file.writeNow(at: offset, from: bytes)
        case .zeroes:
            return false
        }
    }
}

extension SegmentList {
    /// Whether all of them can be sent from where they lie.
    public var areAtHand: Bool {
        guard first?.isAtHand ?? true else { return false }
        return rest.isEmpty || rest.allSatisfy { $0.isAtHand }
    }

    /// `Segment.readNow` of each. After false some of them may have been appended.
    public func readNow(into output: inout OutputRawSpan) -> Bool {
        guard first?.readNow(into: &output) ?? true else { return false }
        for segment in rest where !segment.readNow(into: &output) { return false }
        return true
    }
}
