public import Block

/// The fast face of an image: finds clusters in tables that are in memory, and lets the file's own mapper say where the bytes are.
///
/// Takes no lock, except to find a table that it has not used lately. Reads and overwrites go this way; whatever needs a change of the
/// tables is awaited. Why a mapped write and a cluster that is taken away meanwhile do not harm each other: decision 0014.
final class ImageMapper: RangeMapper {
    private let image: QCOW2Image
    private let finder: RunFinder
    private let data: any RangeMapper
    private let backing: (any RangeMapper)?
    private let slot: Quarantine.Slot
    /// Tables used lately, each at the place that the last bits of its number say.
    private var tables: [L2Table?]
    private let mayWrite: Bool
    /// What `mapWrite` has promised lies here until `didWrite`.
    private var promised: ByteRange?
    /// Collects the pieces of a request that goes over several runs.
    private var pieces = SegmentList()

    private static let tableByteLimit = 1 << 20

    init(_ image: QCOW2Image, data: any RangeMapper, backing: (any RangeMapper)?) {
        self.image = image
        finder = image.finder
        self.data = data
        self.backing = backing
        slot = image.metadata.quarantine.makeSlot()
        let count = max(1, min(16, Self.tableByteLimit / image.geometry.clusterByteCount))
        tables = [L2Table?](repeating: nil, count: count)
        mayWrite = !image.options.isReadOnly && !image.options.writesThrough
    }

    func mapRead(_ range: ByteRange, into segments: inout SegmentList) -> Bool {
        guard range.end <= image.info.byteCount, !range.isEmpty else { return false }
        slot.enter()
        guard let run = run(at: range.start, limit: range.count) else { return false }
        if run.byteCount == range.count { return map(run, range, into: &segments) }
        pieces.removeAll()
        var rest = range
        while !rest.isEmpty {
            guard let run = self.run(at: rest.start, limit: rest.count) else { return false }
            let part = rest.prefix(run.byteCount)
            guard map(run, part, into: &pieces) else { return false }
            rest = rest.dropFirst(part.count)
        }
        segments.append(contentsOf: pieces)
        return true
    }

    private func map(_ run: Run, _ part: ByteRange, into segments: inout SegmentList) -> Bool {
        switch run.kind {
        case .data(let host):
            guard let place = ByteRange(start: host, count: part.count, within: image.data.currentByteCount) else { return false }
            return data.mapRead(place, into: &segments)
        case .zero:
            segments.append(.zeroes(count: Int(part.count)))
            return true
        case .unallocated:
            if !image.hasBacking(part) {
                segments.append(.zeroes(count: Int(part.count)))
                return true
            }
            // What goes over the end of the file below is seldom enough to be awaited.
            guard let backing, part.end <= image.backingByteCount else { return false }
            return backing.mapRead(part, into: &segments)
        case .compressed, .damaged:
            return false
        }
    }

    func mapWrite(_ range: ByteRange, into segments: inout SegmentList) -> Bool {
        guard mayWrite, !image.metadata.hasFailed, range.end <= image.info.byteCount, !range.isEmpty, image.bitmapStore?.beginWriteNow() ?? true
        else { return false }
        if mapOverwrite(range, into: &segments) { return true }
        image.endWrite(nil)
        return false
    }

    private func mapOverwrite(_ range: ByteRange, into segments: inout SegmentList) -> Bool {
        slot.enter()
        guard let run = run(at: range.start, limit: range.count), run.byteCount == range.count, run.isCopied,
            case .data(let host) = run.kind,
            let place = ByteRange(start: host, count: range.count, within: image.data.currentByteCount)
        else { return false }
        guard data.mapWrite(place, into: &segments) else { return false }
        promised = place
        return true
    }

    func didWrite(_ range: ByteRange) {
        if let promised { data.didWrite(promised) }
        promised = nil
        image.endWrite(range)
    }

    func released() {
        slot.leave()
        data.released()
        backing?.released()
    }

    /// Nil when the table is not in memory, or not to be trusted.
    @inline(__always) private func run(at guest: UInt64, limit: UInt64) -> Run? {
        let geometry = image.geometry
        let l1Index = Int(geometry.l1Index(of: guest))
        let place = l1Index & (tables.count - 1)
        if let table = tables[place], table.l1Index == l1Index, !table.isRetired {
            return finder.run(in: table, at: guest, limit: limit)
        }
        guard let table = image.metadata.cache.table(l1Index) else {
            tables[place] = nil
            let entry = L1Entry(rawValue: image.metadata.l1[l1Index])
            guard !entry.isAllocated else { return nil }
            let cover = geometry.l2CoverByteCount
            return Run(kind: .unallocated, byteCount: min(limit, cover - (guest & (cover - 1))))
        }
        guard !table.isSuspect else { return nil }
        tables[place] = table
        return finder.run(in: table, at: guest, limit: limit)
    }
}

extension QCOW2Image {
    public func makeMapper() -> sending (any RangeMapper)? {
        guard let data = data.makeMapper() else { return nil }
        let below = backing?.makeMapper()
        return ImageMapper(self, data: data, backing: below)
    }
}
