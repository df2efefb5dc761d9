public import Block

/// Takes replies on their way out, piece by piece (`Transmission.showOutput`).
///
/// Each function returns false when it has not taken all, or wants no more.
public protocol OutputSink: ~Copyable {
    mutating func append(_ bytes: RawSpan) -> Bool
    /// Bytes that are sent from where they lie (`Transmission.sendsSegments`).
    mutating func append(_ file: Segment.File, offset: UInt64, count: Int) -> Bool
    mutating func append(zeroes count: Int) -> Bool
}
