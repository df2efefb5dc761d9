internal import Block

/// Reads one stored bitmap.
struct BitmapReader {
    let entry: BitmapDirectoryEntry
    let metadata: Metadata
    let virtualByteCount: UInt64

    private var geometry: ImageGeometry { metadata.geometry }
    private var label: String { String(decoding: entry.name, as: UTF8.self) }

    func table() async throws(BlockError) -> [BitmapTableEntry] {
        let count = Int(entry.tableEntryCount)
        guard metadata.isInFile(entry.tableOffset, UInt64(count) * 8) else { throw damaged("its table goes beyond the end of the file") }
        let words = try await metadata.file.bytes(at: entry.tableOffset, count: count * 8).bigEndianWords
        do throws(FormatError) {
            var table: [BitmapTableEntry] = []
            for word in words { table.append(try BitmapTableEntry(rawValue: word, in: geometry)) }
            return table
        } catch {
            throw damaged(error.detail)
        }
    }

    /// Host clusters of table and data, by number.
    func clusters(of table: [BitmapTableEntry]) async throws(BlockError) -> [Range<UInt64>] {
        let bits = UInt64(geometry.clusterBits)
        let first = entry.tableOffset >> bits
        var clusters = [first..<first + geometry.clusterCount(of: UInt64(table.count) * 8)]
        for case .cluster(let offset) in table {
            guard metadata.isInFile(offset, 1) else { throw damaged("a cluster of it lies beyond the end of the file") }
            clusters.append(offset >> bits..<(offset >> bits) + 1)
        }
        return clusters
    }

    func load(_ table: [BitmapTableEntry], into bitmap: DirtyBitmap) async throws(BlockError) {
        let wanted = BitmapDirectoryEntry.tableEntryCount(
            for: virtualByteCount, granularityBits: entry.granularityBits, in: geometry)
        guard let wanted, Int(wanted) == table.count || (wanted == 0 && table.count == 1) else {
            throw damaged("it is not of the size of the disk")
        }
        let bitsPerCluster = UInt64(geometry.clusterByteCount) * 8
        for (index, place) in table.enumerated() {
            let first = UInt64(index) * bitsPerCluster
            switch place {
            case .allZeroes: break
            case .allOnes: mark(first, bitsPerCluster, in: bitmap)
            case .cluster(let offset):
                // The file may end inside of its last cluster.
                let count = Int(min(UInt64(geometry.clusterByteCount), metadata.file.currentByteCount - offset))
                let bytes = try await metadata.file.bytes(at: offset, count: count)
                load(bytes, from: first, into: bitmap)
            }
        }
    }

    /// Bits of a byte count from the lowest.
    private func load(_ bytes: [UInt8], from first: UInt64, into bitmap: DirtyBitmap) {
        var begin: UInt64?
        for (index, byte) in bytes.enumerated() {
            let base = first + UInt64(index) * 8
            if byte == 0 || byte == .max {
                if byte == 0, let start = begin {
                    mark(start, base - start, in: bitmap)
                    begin = nil
                } else if byte == .max, begin == nil {
                    begin = base
                }
                continue
            }
            for bit in 0..<8 as Range<UInt64> {
                if byte >> UInt8(bit) & 1 == 1 {
                    if begin == nil { begin = base + bit }
                } else if let start = begin {
                    mark(start, base + bit - start, in: bitmap)
                    begin = nil
                }
            }
        }
        if let begin { mark(begin, first + UInt64(bytes.count) * 8 - begin, in: bitmap) }
    }

    /// Bits behind the end of the disk are left out.
    private func mark(_ first: UInt64, _ count: UInt64, in bitmap: DirtyBitmap) {
        let shift = UInt64(entry.granularityBits)
        guard first <= (virtualByteCount >> shift) else { return }
        let end = min(first + count, (virtualByteCount >> shift) + 1)
        guard let range = ByteRange(start: first << shift, count: min((end - first) << shift, virtualByteCount - min(virtualByteCount, first << shift)))
        else { return }
        bitmap.mark(range)
    }

    @inline(never) private func damaged(_ detail: String) -> BlockError {
        BlockError(.inputOutput, "bitmap \"\(label)\" of the image is damaged: \(detail)")
    }
}
