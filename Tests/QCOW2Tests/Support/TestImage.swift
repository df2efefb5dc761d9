import Block
import Testing

@testable import QCOW2

/// Builds images by hand.
enum TestImage {
    static func big(_ value: UInt64) -> [UInt8] { (0..<8).map { UInt8(truncatingIfNeeded: value >> (56 - 8 * UInt64($0))) } }

    /// An image without a single data cluster.
    static func empty(
        _ byteCount: UInt64, clusterBits: Int = 16, refcountOrder: Int = 4, extended: Bool = false, version: UInt32 = 3, hasBacking: Bool = false,
        change: (inout ImageHeader) -> Void = { _ in }
    ) throws -> [UInt8] {
        let geometry = try #require(ImageGeometry(clusterBits: clusterBits, refcountOrder: refcountOrder, hasExtendedL2: extended))
        let cluster = UInt64(geometry.clusterByteCount)
        var header = ImageHeader(version: version, geometry: geometry, virtualByteCount: byteCount)
        if hasBacking { header.backingFileName = Array("base".utf8) }
        header.l1EntryCount = UInt32(geometry.l1EntryCount(for: byteCount))
        header.refcountTableOffset = cluster
        header.refcountTableClusterCount = 1
        header.l1TableOffset = 3 * cluster
        change(&header)
        let used = 3 + geometry.clusterCount(of: header.l1TableByteCount)
        var bytes = try header.encoded()
        bytes += [UInt8](repeating: 0, count: Int(used * cluster) - bytes.count)
        bytes.replaceSubrange(Int(cluster)..<Int(cluster) + 8, with: big(2 * cluster))
        bytes.withMutableRawBytes { all in
            var block = all._mutatingExtracting(Int(2 * cluster)..<Int(3 * cluster))
            for index in 0..<Int(used) { geometry.refcountWidth.setRefcount(1, at: index, in: &block) }
        }
        return bytes
    }

    static func header(of bytes: [UInt8]) throws -> ImageHeader { try ImageHeader(decoding: bytes.rawBytes) }

    /// The image, closed before, as it is after an internal snapshot: everything is shared.
    static func snapshotted(_ bytes: [UInt8]) throws -> [UInt8] {
        var header = try header(of: bytes)
        let geometry = header.geometry
        let cluster = geometry.clusterByteCount
        var bytes = bytes
        bytes += [UInt8](repeating: 0, count: (cluster - bytes.count % cluster) % cluster)
        func word(_ offset: Int) -> UInt64 { bytes.rawBytes.bigEndian(at: offset) }
        func setWord(_ value: UInt64, _ offset: Int) { bytes.replaceSubrange(offset..<offset + 8, with: big(value)) }
        func setRefcount(_ count: UInt64, _ offset: UInt64) {
            let index = Int(offset) >> geometry.clusterBits
            let block = Int(word(Int(header.refcountTableOffset) + 8 * (index >> geometry.refcountBlockBits)))
            bytes.withMutableRawBytes { all in
                var part = all._mutatingExtracting(block..<block + cluster)
                geometry.refcountWidth.setRefcount(count, at: index & (geometry.refcountBlockEntryCount - 1), in: &part)
            }
        }
        for index in 0..<Int(header.l1EntryCount) {
            let place = Int(header.l1TableOffset) + index * 8
            let entry = L1Entry(rawValue: word(place))
            guard entry.isAllocated else { continue }
            setWord(entry.tableOffset, place)
            setRefcount(2, entry.tableOffset)
            for at in stride(from: Int(entry.tableOffset), to: Int(entry.tableOffset) + cluster, by: geometry.l2EntryByteCount) {
                let entry = L2Entry(rawDescriptor: word(at))
                guard entry.hostOffset != 0, !entry.isCompressed else { continue }
                setWord(entry.rawDescriptor & ~(1 << 63), at)
                setRefcount(2, entry.hostOffset)
            }
        }
        let l1Offset = bytes.count
        let l1Size = Int(header.l1TableByteCount)
        bytes += bytes[Int(header.l1TableOffset)..<Int(header.l1TableOffset) + l1Size]
        bytes += [UInt8](repeating: 0, count: (cluster - bytes.count % cluster) % cluster)
        header.snapshotTableOffset = UInt64(bytes.count)
        header.snapshotCount = 1
        let entry = SnapshotEntry(
            l1TableOffset: UInt64(l1Offset), l1EntryCount: header.l1EntryCount, id: Array("1".utf8), name: Array("before".utf8),
            virtualByteCount: header.virtualByteCount)
        bytes += entry.encoded
        bytes += [UInt8](repeating: 0, count: (cluster - bytes.count % cluster) % cluster)
        for offset in stride(from: l1Offset, to: bytes.count, by: cluster) { setRefcount(1, UInt64(offset)) }
        bytes.replaceSubrange(0..<cluster, with: try header.encoded())
        return bytes
    }

    static func open(
        _ file: RecordingDevice, backing: (any BlockDevice)? = nil, dataFile: RecordingDevice? = nil, _ options: QCOW2Image.Options = .init()
    ) async throws -> QCOW2Image {
        try await QCOW2Image.open(try await ImageHeader.read(from: file), on: file, backing: backing, dataFile: dataFile, options)
    }
}

/// Counts references as a check does, in a way of its own.
struct ReferenceCheck {
    var errors: [String] = []
    /// Marks of one reference that are not what the refcounts say, without a second name that a write could hurt.
    var harmlessFlags: [String] = []
    /// Clusters that are counted more often than named.
    var leakCount = 0

    init(_ bytes: [UInt8]) throws {
        let header = try TestImage.header(of: bytes)
        let geometry = header.geometry
        let cluster = UInt64(geometry.clusterByteCount)
        let end = geometry.clusterCount(of: UInt64(bytes.count))
        var names: [UInt64: UInt64] = [:]
        func word(_ offset: UInt64) -> UInt64 {
            offset + 8 <= UInt64(bytes.count) ? bytes.rawBytes.bigEndian(at: Int(offset)) : 0
        }
        func name(_ offset: UInt64, _ byteCount: UInt64, _ what: String) {
            for index in offset / cluster..<(offset + byteCount + cluster - 1) / cluster {
                names[index, default: 0] += 1
                if index >= end { errors.append("\(what) at \(offset) is behind the end") }
            }
        }
        func refcount(_ index: UInt64) -> UInt64 {
            let entry = index >> UInt64(geometry.refcountBlockBits)
            guard entry * 8 < header.refcountTableByteCount else { return 0 }
            let block = word(header.refcountTableOffset + entry * 8)
            guard block != 0, block + cluster <= UInt64(bytes.count) else { return 0 }
            let span = bytes.rawBytes.extracting(Int(block)..<Int(block + cluster))
            return geometry.refcountWidth.refcount(at: Int(index) & (geometry.refcountBlockEntryCount - 1), in: span)
        }
        name(0, cluster, "header")
        name(header.refcountTableOffset, header.refcountTableByteCount, "refcount table")
        for index in 0..<header.refcountTableByteCount / 8 {
            let block = word(header.refcountTableOffset + index * 8)
            if block % cluster != 0 { errors.append("refcount block at \(block)") }
            if block != 0 { name(block, cluster, "refcount block") }
        }
        var tables = [(header.l1TableOffset, header.l1EntryCount, true)]
        if header.snapshotCount > 0 {
            let table = bytes.rawBytes.extracting(Int(header.snapshotTableOffset)..<bytes.count)
            let snapshots = try SnapshotEntry.decodeTable(table, count: Int(header.snapshotCount), in: geometry)
            name(header.snapshotTableOffset, UInt64(snapshots.consumed), "snapshot table")
            for snapshot in snapshots.entries { tables.append((snapshot.l1TableOffset, snapshot.l1EntryCount, false)) }
        }
        var flags: [(UInt64, Bool, String)] = []
        for (l1, count, isActive) in tables {
            name(l1, UInt64(count) * 8, "L1 table")
            for index in 0..<UInt64(count) {
                let entry = L1Entry(rawValue: word(l1 + index * 8))
                guard entry.isAllocated else { continue }
                name(entry.tableOffset, cluster, "L2 table")
                if isActive { flags.append((entry.tableOffset, entry.isCopied, "L1 entry \(index)")) }
                for at in stride(from: entry.tableOffset, to: entry.tableOffset + cluster, by: geometry.l2EntryByteCount) {
                    let entry = L2Entry(rawDescriptor: word(at), subclusters: SubclusterBitmap(rawValue: geometry.hasExtendedL2 ? word(at + 8) : 0))
                    switch try entry.mapping(in: geometry, hasDataFile: header.hasDataFile) {
                    case .compressed(let place):
                        let clusters = place.hostClusters(in: geometry)
                        name(clusters.first, clusters.last - clusters.first + cluster, "compressed cluster")
                    case let mapping:
                        guard let host = mapping.hostCluster, !header.hasDataFile else { continue }
                        name(host, cluster, "data cluster")
                        if isActive { flags.append((host, entry.isCopied, "L2 entry at \(at)")) }
                    }
                }
            }
        }
        for (index, count) in names where refcount(index) < count { errors.append("cluster \(index): refcount \(refcount(index)), named \(count)") }
        for (host, isCopied, what) in flags where isCopied != (refcount(host / cluster) == 1) {
            let text = "\(what): copied \(isCopied), refcount \(refcount(host / cluster))"
            if isCopied, names[host / cluster, default: 0] > 1 { errors.append(text) } else { harmlessFlags.append(text) }
        }
        for index in 0..<end where refcount(index) > names[index, default: 0] { leakCount += 1 }
    }
}
