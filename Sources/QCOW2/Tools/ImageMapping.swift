import Block

/// What an image itself, without what lies below it, says of a run of guest bytes.
public struct MappedRun: Equatable, Sendable {
    public enum Kind: Equatable, Sendable {
        /// At `offset` in the image, or in its data file.
        case data(offset: UInt64)
        case compressed
        /// Reads as zeroes; the host bytes at `offset`, if any, belong to it.
        case zero(offset: UInt64?)
        /// What lies below counts.
        case unallocated
    }

    /// In bytes, at least 1.
    public var byteCount: UInt64
    public var kind: Kind
}

/// Walks over the mapping of an image in the disk's order. Keeps one L2 table.
public final class ImageMap {
    private let image: ImageFile
    private var l1: [UInt64]
    private var table: (place: UInt64, bytes: [UInt8])?
    private var geometry: ImageGeometry { image.geometry }

    /// - Throws: when the L1 table lies outside of the file.
    public init(_ image: ImageFile) async throws(ImageError) {
        self.image = image
        try decoding { () throws(FormatError) in try image.header.requireReadable() }
        guard image.header.l1TableByteCount <= image.byteCount, image.header.l1TableOffset <= image.byteCount else {
            throw .format(.corrupt("the L1 table lies outside of the file"))
        }
        l1 = try await image.readEntries(at: image.header.l1TableOffset, count: Int(image.header.l1EntryCount))
    }

    /// What is at `offset`, and for how long it goes on in the same way: at most `limit` bytes, and not beyond one L2 table.
    ///
    /// - Precondition: `offset` is inside of the disk, `limit` at least 1.
    public func run(at offset: UInt64, limit: UInt64) async throws(ImageError) -> MappedRun {
        let limit = min(limit, image.header.virtualByteCount - offset)
        let cover = geometry.l2CoverByteCount
        let inTable = min(limit, cover - offset % cover)
        let entry = L1Entry(rawValue: l1[Int(geometry.l1Index(of: offset))])
        guard let place = try decoding({ () throws(FormatError) in try entry.table(in: geometry) }) else {
            return MappedRun(byteCount: inTable, kind: .unallocated)
        }
        if table?.place != place { table = (place, try await image.read(at: place, count: geometry.clusterByteCount)) }
        var run = try piece(at: offset)
        while run.byteCount < inTable {
            let next = try piece(at: offset + run.byteCount)
            guard Self.continues(run, next.kind) else { break }
            run.byteCount += next.byteCount
        }
        run.byteCount = min(run.byteCount, inTable)
        return run
    }

    /// To the end of the cluster, or of the subclusters that are alike.
    private func piece(at offset: UInt64) throws(ImageError) -> MappedRun {
        guard let table else { return MappedRun(byteCount: 1, kind: .unallocated) }
        let entry = L2Entry(decoding: table.bytes.rawBytes, at: geometry.l2Index(of: offset), in: geometry)
        let mapping = try decoding { () throws(FormatError) in try entry.mapping(in: geometry, hasDataFile: image.header.hasDataFile) }
        let inside = offset & geometry.clusterMask
        let rest = UInt64(geometry.clusterByteCount) - inside
        switch mapping {
        case .unallocated: return MappedRun(byteCount: rest, kind: .unallocated)
        case .compressed: return MappedRun(byteCount: rest, kind: .compressed)
        case .zero(let place): return MappedRun(byteCount: rest, kind: .zero(offset: place.map { $0 + inside }))
        case .data(let place): return MappedRun(byteCount: rest, kind: .data(offset: place + inside))
        case .subclusters(let place, let bitmap):
            let first = geometry.subclusterIndex(of: offset)
            var last = first
            while last + 1 < ImageGeometry.subclusterCount, bitmap.state(last + 1) == bitmap.state(first) { last += 1 }
            let byteCount = UInt64(last + 1) * UInt64(geometry.subclusterByteCount) - inside
            let kind: MappedRun.Kind =
                switch bitmap.state(first) {
                case .data: place.map { .data(offset: $0 + inside) } ?? .unallocated
                case .zero: .zero(offset: place.map { $0 + inside })
                case .unallocated: .unallocated
                }
            return MappedRun(byteCount: byteCount, kind: kind)
        }
    }

    private static func continues(_ run: MappedRun, _ next: MappedRun.Kind) -> Bool {
        switch (run.kind, next) {
        case (.data(let offset), .data(let after)): offset &+ run.byteCount == after
        case (.zero(let offset), .zero(let after)): offset.map { $0 &+ run.byteCount } == after
        case (.compressed, .compressed), (.unallocated, .unallocated): true
        default: false
        }
    }
}

extension SubclusterBitmap {
    enum State: Equatable { case data, zero, unallocated }

    func state(_ index: Int) -> State {
        if allocated >> UInt32(index) & 1 == 1 { return .data }
        return zero >> UInt32(index) & 1 == 1 ? .zero : .unallocated
    }
}
