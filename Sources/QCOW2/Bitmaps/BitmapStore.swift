public import Block
internal import Synchronization

/// The dirty bitmaps that an image stores.
///
/// They are read when the image is opened. While it is open for writing the image says of each that it is in use: after a crash everybody
/// knows that it is worth nothing. At closing they are written anew, beside the old ones, and the header then leads to the new directory:
/// so a power cut at any moment leaves bitmaps that are right, or marked as inconsistent.
///
/// Spec: qcow2, "Bitmaps". REFERENCE: S-BLK-14, S-EXP-11…16.
final class BitmapStore: Sendable {
    /// In the order of the directory.
    let bitmaps: [DirtyBitmap]
    private let metadata: Metadata
    /// As they are in the image, each beside its bitmap; those without one are not ours to read or change.
    private let stored: [Stored]

    private struct Stored: Sendable {
        var entry: BitmapDirectoryEntry
        var bitmap: DirtyBitmap?
        /// Host clusters of its table and data.
        var clusters: [Range<UInt64>] = []
    }

    private init(_ metadata: Metadata, _ stored: [Stored]) {
        self.metadata = metadata
        self.stored = stored
        bitmaps = stored.compactMap(\.bitmap)
    }

    /// Most bytes that the bitmaps of an image may have together: an image must not keep us reading for hours.
    private static let totalByteLimit: UInt64 = 1 << 30

    /// Reads the bitmaps; of an image to be written, marks them as in use.
    ///
    /// - Returns: nil when there are none, or when somebody has written to the image who knew nothing of bitmaps.
    static func open(_ metadata: Metadata, _ header: ImageHeader, virtualByteCount: UInt64) async throws(BlockError) -> BitmapStore? {
        guard let place = header.bitmaps, header.autoclearFeatures.contains(.bitmaps) else { return nil }
        guard metadata.isInFile(place.directoryOffset, place.directoryByteCount) else {
            throw BlockError(.inputOutput, "the image is damaged: its bitmap directory goes beyond the end of the file")
        }
        let directory = try await metadata.file.bytes(at: place.directoryOffset, count: Int(place.directoryByteCount))
        let entries: [BitmapDirectoryEntry]
        do throws(FormatError) {
            entries = try BitmapDirectoryEntry.decodeDirectory(directory.rawBytes, count: Int(place.bitmapCount), in: header.geometry)
        } catch {
            throw BlockError(error)
        }
        var budget = totalByteLimit
        var stored: [Stored] = []
        for entry in entries { stored.append(try await read(entry, metadata, virtualByteCount, &budget)) }
        let store = BitmapStore(metadata, stored)
        if !metadata.isReadOnly { try await store.markInUse(place) }
        return store
    }

    private static func read(
        _ entry: BitmapDirectoryEntry, _ metadata: Metadata, _ virtualByteCount: UInt64, _ budget: inout UInt64
    ) async throws(BlockError) -> Stored {
        var stored = Stored(entry: entry)
        let reader = BitmapReader(entry: entry, metadata: metadata, virtualByteCount: virtualByteCount)
        guard entry.isUsable, let name = String(validating: entry.name, as: UTF8.self) else {
            stored.clusters = try await reader.clusters(of: try await reader.table())
            return stored
        }
        let bitmap: DirtyBitmap
        do throws(BitmapError) {
            bitmap = try DirtyBitmap(
                name, byteCount: virtualByteCount, granularity: 1 << UInt64(entry.granularityBits), isEnabled: entry.flags.contains(.auto))
        } catch {
            throw BlockError(.inputOutput, "the image is damaged: \(error.description)")
        }
        stored.bitmap = bitmap
        let table = try await reader.table()
        stored.clusters = try await reader.clusters(of: table)
        if entry.flags.contains(.inUse) {
            bitmap.setInconsistent()
        } else {
            let byteCount = UInt64(table.count) << UInt64(metadata.geometry.clusterBits)
            guard byteCount <= budget else { throw BlockError(.unsupported, "the bitmaps of the image have more than 1 GiB") }
            budget -= byteCount
            try await reader.load(table, into: bitmap)
        }
        bitmap.setReadOnly(metadata.isReadOnly)
        return stored
    }

    /// Says in the image that the bitmaps there fall behind, before they do.
    private func markInUse(_ place: BitmapsExtension) async throws(BlockError) {
        metadata.state.withLock { state in
            for one in stored { for clusters in one.clusters { state.reserved.insert(clusters) } }
        }
        var directory: [UInt8] = []
        for one in stored {
            var entry = one.entry
            // What we cannot use we do not keep either, unless it is worth nothing already.
            if one.bitmap != nil || entry.flags.contains(.auto) { entry.flags.insert(.inUse) }
            directory += entry.encoded
        }
        guard UInt64(directory.count) == place.directoryByteCount else { return }
        try await metadata.file.store(directory, at: place.directoryOffset)
        try await metadata.file.flush()
    }

    /// Writes the bitmaps as they are now. Called once, after the last write.
    func store() async throws(BlockError) {
        guard let place = metadata.state.withLock({ $0.header.bitmaps }) else { return }
        let bits = UInt64(metadata.geometry.clusterBits)
        var directory: [UInt8] = []
        var old: [Range<UInt64>] = [
            place.directoryOffset >> bits..<(place.directoryOffset >> bits) + metadata.geometry.clusterCount(of: place.directoryByteCount)
        ]
        for one in stored {
            var entry = one.entry
            if let bitmap = one.bitmap, !bitmap.isInconsistent {
                let table = try await BitmapWriter(metadata: metadata, bitmap: bitmap).write()
                entry.tableOffset = table.offset
                entry.tableEntryCount = table.entryCount
                entry.flags = entry.flags.intersection(.extraDataCompatible)
                if bitmap.isEnabled { entry.flags.insert(.auto) }
                old += one.clusters
            } else if one.bitmap != nil || entry.flags.contains(.auto) {
                entry.flags.insert(.inUse)
            }
            directory += entry.encoded
        }
        let offset = try await BitmapWriter.place(directory, metadata)
        // Counted and durable before the header leads there.
        try await metadata.commit()
        let new = BitmapsExtension(
            bitmapCount: place.bitmapCount, directoryByteCount: UInt64(directory.count), directoryOffset: offset)
        try await metadata.writeBitmapsExtension(new)
        try await metadata.file.flush()
        let freed = old
        metadata.state.withLock { state in
            for clusters in freed { state.free(clusters, mayDiscard: true) }
        }
    }
}

extension QCOW2Image: BitmapOwner {
    public var bitmaps: [DirtyBitmap] { bitmapStore?.bitmaps ?? [] }

    /// Before the request is answered, whatever came of it (S-BLK-23).
    @inline(__always) func record(_ range: ByteRange?) {
        guard let bitmapStore, let range else { return }
        for bitmap in bitmapStore.bitmaps { bitmap.record(range) }
    }
}
