public import Block
internal import Synchronization

/// The dirty bitmaps that an image stores.
///
/// They are read when the image is opened. The first write waits until the image says of each that it is in use: after a crash everybody knows
/// that it is worth nothing. At closing, and when nobody uses the image for a while (`settle`), they are written anew, beside the old ones, and
/// the header then leads to the new directory: so a power cut at any moment leaves bitmaps that are right, or marked as inconsistent. (QEMU
/// marks them when it opens the image, and writes them at closing only.)
///
/// Spec: qcow2, "Bitmaps". REFERENCE: S-BLK-14, S-EXP-11…16.
final class BitmapStore: Sendable {
    /// In the order of the directory.
    let bitmaps: [DirtyBitmap]
    private let metadata: Metadata
    private let report: (@Sendable (String) -> Void)?
    /// As they are in the image, each beside its bitmap; those without one are not ours to read or change.
    private let stored: Mutex<[Stored]>
    /// How many requests change the disk at the moment, and `settled` while what the image holds is right.
    private let writers = Atomic<Int>(settled)
    private let isFinished = Atomic<Bool>(false)
    /// Held by whoever changes what the image holds of bitmaps.
    private let lock = AsyncLock()

    private struct Stored: Sendable {
        var entry: BitmapDirectoryEntry
        var bitmap: DirtyBitmap?
        /// Host clusters of its table and data.
        var clusters: [Range<UInt64>] = []

        /// What the image says while the stored bits are behind. What we cannot use we do not keep either, unless it is worth nothing already.
        var entryInUse: BitmapDirectoryEntry {
            var entry = entry
            if bitmap != nil || entry.flags.contains(.auto) { entry.flags.insert(.inUse) }
            return entry
        }
    }

    private init(_ metadata: Metadata, _ stored: [Stored], _ report: (@Sendable (String) -> Void)?) {
        self.metadata = metadata
        self.report = report
        self.stored = Mutex(stored)
        bitmaps = stored.compactMap(\.bitmap)
    }

    /// Most bytes that the bitmaps of an image may have together: an image must not keep us reading for hours.
    private static let totalByteLimit: UInt64 = 1 << 30

    /// Reads the bitmaps.
    ///
    /// - Returns: nil when there are none, or when somebody has written to the image who knew nothing of bitmaps.
    static func open(_ metadata: Metadata, _ header: ImageHeader, virtualByteCount: UInt64, report: (@Sendable (String) -> Void)?) async throws(BlockError)
        -> BitmapStore?
    {
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
        let all = stored
        let overlap = metadata.state.withLock { state -> BitmapDirectoryEntry? in
            for one in all {
                for clusters in one.clusters {
                    if state.reserved.overlaps(clusters) { return one.entry }
                    state.reserved.insert(clusters)
                }
            }
            return nil
        }
        // They are freed when the bitmap is stored anew: what else lies there would be lost.
        if let overlap, !metadata.isReadOnly {
            throw BlockError(
                .inputOutput, "the image is damaged: bitmap '\(String(decoding: overlap.name, as: UTF8.self))' overlaps tables of the image or other bitmaps")
        }
        return BitmapStore(metadata, stored, report)
    }

    private static func read(
        _ entry: BitmapDirectoryEntry, _ metadata: Metadata, _ virtualByteCount: UInt64, _ budget: inout UInt64
    ) async throws(BlockError) -> Stored {
        var stored = Stored(entry: entry)
        let reader = BitmapReader(entry: entry, metadata: metadata, virtualByteCount: virtualByteCount)
        // A name is only bytes to the format. One that nobody can ask for is no reason not to serve the disk; the bitmap is kept, under it.
        guard entry.isUsable, let name = String(validating: entry.name, as: UTF8.self), !name.utf8.contains(0) else {
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
        let directory = stored.withLock { $0 }.flatMap(\.entryInUse.encoded)
        guard UInt64(directory.count) == place.directoryByteCount else {
            throw BlockError(.inputOutput, "the image is damaged: its bitmap directory has \(place.directoryByteCount) bytes, its entries \(directory.count)")
        }
        try await metadata.file.store(directory, at: place.directoryOffset)
        try await metadata.file.flush()
    }

    // MARK: Between writes

    private static let settled = 1 << 62

    /// Begins a request that changes the disk: true if nothing has to be waited for. Then `endWrite` follows.
    @inline(__always) func beginWriteNow() -> Bool {
        guard writers.add(1, ordering: .sequentiallyConsistent).oldValue >= Self.settled else { return true }
        endWrite()
        return false
    }

    @inline(__always) func endWrite() { writers.subtract(1, ordering: .sequentiallyConsistent) }

    /// - Throws: what the file says when the bitmaps cannot be marked as in use; then nothing has begun.
    func beginWrite() async throws(BlockError) {
        while !beginWriteNow() {
            try await lock.withLock { () async throws(BlockError) in
                guard writers.load(ordering: .sequentiallyConsistent) >= Self.settled, let place = metadata.state.withLock({ $0.header.bitmaps })
                else { return }
                try await markInUse(place)
                writers.subtract(Self.settled, ordering: .sequentiallyConsistent)
            }
        }
    }

    /// Writes the bitmaps, unless somebody changes the disk at the moment or nobody has since the last time. Where that fails they stay
    /// marked as in use.
    func settle() async {
        await lock.withLock { () async in
            guard !isFinished.load(ordering: .relaxed),
                writers.compareExchange(expected: 0, desired: Self.settled, ordering: .sequentiallyConsistent).exchanged
            else { return }
            do throws(BlockError) {
                try await store()
                // The second brings what only became free by the first.
                for _ in 0..<2 { try await metadata.commit() }
            } catch {
                writers.subtract(Self.settled, ordering: .sequentiallyConsistent)
                report?("bitmaps could not be stored, and will be inconsistent if that stays so: \(error.detail)")
            }
        }
    }

    /// Writes the bitmaps for the last time.
    func finish() async throws(BlockError) {
        try await lock.withLock { () async throws(BlockError) in
            isFinished.store(true, ordering: .relaxed)
            try await store()
        }
    }

    /// Writes the bitmaps as they are now. Where it fails, the image is as before, or not written any more.
    private func store() async throws(BlockError) {
        guard let place = metadata.state.withLock({ $0.header.bitmaps }) else { return }
        let before = stored.withLock { $0 }
        var after = before
        var old = [place.clusters(in: metadata.geometry)]
        var directory: [UInt8] = []
        var new = BitmapWriter(metadata: metadata)
        let newPlace: BitmapsExtension
        do throws(BlockError) {
            for (index, one) in before.enumerated() {
                var entry = one.entry
                if let bitmap = one.bitmap, !bitmap.isInconsistent {
                    let count = new.clusters.count
                    (entry.tableOffset, entry.tableEntryCount) = try await new.write(bitmap)
                    entry.flags = entry.flags.intersection(.extraDataCompatible)
                    if bitmap.isEnabled { entry.flags.insert(.auto) }
                    old += one.clusters
                    after[index] = Stored(entry: entry, bitmap: bitmap, clusters: Array(new.clusters[count...]))
                } else {
                    entry = one.entryInUse
                }
                directory += entry.encoded
            }
            newPlace = BitmapsExtension(
                bitmapCount: place.bitmapCount, directoryByteCount: UInt64(directory.count), directoryOffset: try await new.place(directory))
            // Counted and durable before the header leads there.
            try await metadata.commit()
        } catch {
            await new.giveBack()
            throw error
        }
        do throws(BlockError) {
            try await metadata.writeBitmapsExtension(newPlace)
            try await metadata.file.flush()
        } catch {
            // Nobody knows which of the two directories the image has.
            metadata.fail(error)
            throw error
        }
        let (written, freed) = (new.clusters, old)
        stored.withLock { $0 = after }
        metadata.state.withLock { state in
            for clusters in written { state.reserved.insert(clusters) }
            for clusters in freed { state.free(clusters, mayDiscard: true) }
        }
    }
}

extension QCOW2Image: BitmapOwner {
    public var bitmaps: [DirtyBitmap] { bitmapStore?.bitmaps ?? [] }
}
