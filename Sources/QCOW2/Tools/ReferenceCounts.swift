/// How often each cluster of a file is referred to, counted while the tables are walked.
///
/// One byte for each cluster, in pages that appear when they are touched, so a sparse file costs what it uses; larger counts stand beside.
/// `pageLimit` bounds the memory: 8192 pages are 512 MiB, enough for a full image of 32 TiB with clusters of 64 KiB. An image that
/// refers to more, or with more large counts than `largeLimit`, is not checked.
struct ReferenceCounts {
    static let pageEntryCount: UInt64 = 65536
    var pageLimit = 8192
    var largeLimit = 1 << 20
    private var pages: [UInt64: [UInt8]] = [:]
    private var large: [UInt64: UInt64] = [:]
    /// The highest cluster with a reference.
    private(set) var highest: UInt64?

    /// - Throws: `.unsupported` when the bounds above are reached.
    mutating func add(_ count: UInt64 = 1, to cluster: UInt64) throws(FormatError) {
        let page = cluster / Self.pageEntryCount
        let index = Int(cluster % Self.pageEntryCount)
        if highest ?? 0 <= cluster { highest = cluster }
        guard let small = pages[page]?[index] else {
            guard pages.count < pageLimit else { throw Self.tooMany }
            pages[page] = [UInt8](repeating: 0, count: Int(Self.pageEntryCount))
            return try add(count, to: cluster)
        }
        let sum = (small == .max ? large[cluster] ?? UInt64(small) : UInt64(small)).addingReportingOverflow(count)
        let total = sum.overflow ? .max : sum.partialValue
        if total < UInt64(UInt8.max) {
            pages[page]?[index] = UInt8(total)
        } else {
            guard large.count < largeLimit else { throw Self.tooMany }
            pages[page]?[index] = .max
            large[cluster] = total
        }
    }

    subscript(cluster: UInt64) -> UInt64 {
        guard let small = pages[cluster / Self.pageEntryCount]?[Int(cluster % Self.pageEntryCount)] else { return 0 }
        return small == .max ? large[cluster] ?? UInt64(small) : UInt64(small)
    }

    mutating func clear(_ cluster: UInt64) {
        pages[cluster / Self.pageEntryCount]?[Int(cluster % Self.pageEntryCount)] = 0
        large[cluster] = nil
    }

    /// The clusters of each page that exists, in ascending order.
    var ranges: [Range<UInt64>] {
        pages.keys.sorted().map { $0 * Self.pageEntryCount..<($0 + 1) * Self.pageEntryCount }
    }

    /// Whether any cluster of the range has references; fast where there is no page.
    func isEmpty(_ range: Range<UInt64>) -> Bool {
        var cluster = range.lowerBound
        while cluster < range.upperBound {
            let page = cluster / Self.pageEntryCount
            let end = min((page + 1) * Self.pageEntryCount, range.upperBound)
            if let counts = pages[page] {
                let first = Int(cluster % Self.pageEntryCount)
                if counts[first..<first + Int(end - cluster)].contains(where: { $0 != 0 }) { return false }
            }
            cluster = end
        }
        return true
    }

    @inline(never) private static var tooMany: FormatError {
        .unsupported("the image refers to more clusters than can be counted here in bounded memory")
    }
}
