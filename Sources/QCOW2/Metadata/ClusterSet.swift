/// A set of host clusters, by number. Takes memory for the parts of a file that have members, not for the size of the file.
struct ClusterSet: Equatable, Sendable {
    private var pages: [UInt64: [UInt64]] = [:]
    /// log2 of the clusters of a page.
    private static let pageBits: UInt64 = 12

    func contains(_ cluster: UInt64) -> Bool {
        guard let page = pages[cluster >> Self.pageBits] else { return false }
        let (word, bit) = Self.place(cluster)
        return page[word] & bit != 0
    }

    /// Returns false when it was there before.
    @discardableResult
    mutating func insert(_ cluster: UInt64) -> Bool {
        let (word, bit) = Self.place(cluster)
        let old = pages[cluster >> Self.pageBits, default: [UInt64](repeating: 0, count: 1 << (Self.pageBits - 6))][word]
        guard old & bit == 0 else { return false }
        pages[cluster >> Self.pageBits, default: [UInt64](repeating: 0, count: 1 << (Self.pageBits - 6))][word] = old | bit
        return true
    }

    mutating func remove(_ cluster: UInt64) {
        let (word, bit) = Self.place(cluster)
        pages[cluster >> Self.pageBits]?[word] &= ~bit
    }

    mutating func insert(_ clusters: Range<UInt64>) {
        for cluster in clusters { insert(cluster) }
    }

    mutating func remove(_ clusters: Range<UInt64>) {
        for cluster in clusters { remove(cluster) }
    }

    func overlaps(_ clusters: Range<UInt64>) -> Bool {
        clusters.contains { contains($0) }
    }

    private static func place(_ cluster: UInt64) -> (word: Int, bit: UInt64) {
        (Int(cluster & (1 << pageBits - 1)) >> 6, 1 << (cluster & 63))
    }
}
