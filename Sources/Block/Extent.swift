/// What is known of a run of bytes. The raw values are those of NBD's `base:allocation` (PROTOCOL 1.2).
public struct ExtentStatus: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// No space is allocated.
    public static let hole = ExtentStatus(rawValue: 1 << 0)
    /// Reads back as zeroes.
    public static let zero = ExtentStatus(rawValue: 1 << 1)
    /// Allocated data; always a safe answer.
    public static let data: ExtentStatus = []

    // Other contexts have values of their own.

    /// Of a dirty bitmap: written since (S-BST-09).
    public static let dirty = ExtentStatus(rawValue: 1 << 0)
    /// Of `BlockDevice.allocationDepth`: a number, not bits.
    public static func depth(_ number: UInt32) -> ExtentStatus { ExtentStatus(rawValue: number) }
}

/// A run of bytes of equal status.
public struct Extent: Equatable, Sendable {
    /// Length in bytes, never 0.
    public var count: UInt64
    public var status: ExtentStatus

    public init(_ count: UInt64, _ status: ExtentStatus) {
        self.count = count
        self.status = status
    }
}

/// Consecutive extents, neighbours merged, bounded in number and in bytes (S-BST-01…05).
public struct ExtentList: Sendable {
    public private(set) var extents: [Extent] = []
    /// Sum of all lengths, in bytes; never more than `byteCountLimit`.
    public private(set) var byteCount: UInt64 = 0
    /// Most bytes the list will take: the length of the request.
    public let byteCountLimit: UInt64
    /// Most extents the list will take, at least 1.
    public let extentCountLimit: Int

    public init(byteCountLimit: UInt64, extentCountLimit: Int = 131_072) {
        precondition(extentCountLimit > 0)
        self.byteCountLimit = byteCountLimit
        self.extentCountLimit = extentCountLimit
    }

    /// Nothing more can be added.
    public private(set) var isFull = false

    /// Adds a run, clipped to what fits; runs of length 0 are ignored. Returns false when the list is full: stop there.
    @discardableResult
    public mutating func append(_ count: UInt64, _ status: ExtentStatus) -> Bool {
        let taken = min(count, byteCountLimit - byteCount)
        guard taken > 0, !isFull else { return !isFull }
        if let last = extents.indices.last, extents[last].status == status {
            extents[last].count += taken
        } else if extents.count < extentCountLimit {
            extents.append(Extent(taken, status))
        } else {
            isFull = true
            return false
        }
        byteCount += taken
        if byteCount == byteCountLimit { isFull = true }
        return !isFull
    }
}
