public import Block

/// An image that nobody else has open, as the tools see it: a file with a header in front. Nothing is cached.
///
/// Not for serving: there every request has its own task and `QCOW2Image` its caches.
public final class ImageFile {
    let device: any ResizableDevice
    /// As it stands in the file, unless a tool is about to write another.
    public internal(set) var header: ImageHeader

    init(device: any ResizableDevice, header: ImageHeader) {
        self.device = device
        self.header = header
    }

    /// Reads the header of an image. Accepts what cannot be read further, so that it can be told of: see `ImageHeader.requireReadable`.
    public static func open(_ device: any ResizableDevice) async throws(ImageError) -> ImageFile {
        let front = try await read(device, at: 0, count: ImageHeader.probeByteCount)
        let available = Int(clamping: min(device.currentByteCount, UInt64(ImageHeader.probeByteCount)))
        let byteCount = try decoding { () throws(FormatError) in
            try ImageHeader.byteCountToRead(front.rawBytes.extracting(..<available))
        }
        let cluster = try await read(device, at: 0, count: Int(clamping: min(device.currentByteCount, UInt64(byteCount))))
        let header = try decoding { () throws(FormatError) in try ImageHeader(decoding: cluster.rawBytes) }
        return ImageFile(device: device, header: header)
    }

    public var geometry: ImageGeometry { header.geometry }
    /// Of the file, in bytes.
    public var byteCount: UInt64 { device.currentByteCount }
    var clusterByteCount: Int { header.clusterByteCount }
}

extension ImageFile {
    /// Bytes of the file; zeroes behind its end, where the last cluster may not be complete.
    func read(at offset: UInt64, count: Int) async throws(ImageError) -> [UInt8] {
        try await Self.read(device, at: offset, count: count)
    }

    static func read(_ device: any ResizableDevice, at offset: UInt64, count: Int) async throws(ImageError) -> [UInt8] {
        let size = device.currentByteCount
        let inside = Int(clamping: min(UInt64(count), size - min(offset, size)))
        do throws(BlockError) {
            var bytes = try await device.bytes(at: offset, count: inside)
            if inside < count { bytes += [UInt8](repeating: 0, count: count - inside) }
            return bytes
        } catch {
            throw .device(error)
        }
    }

    func write(_ bytes: [UInt8], at offset: UInt64) async throws(ImageError) {
        do throws(BlockError) { try await device.store(bytes, at: offset) } catch { throw .device(error) }
    }

    func flush() async throws(ImageError) {
        guard device.info.abilities.flush == .native else { return }
        do throws(BlockError) { try await device.flush() } catch { throw .device(error) }
    }

    func resize(to byteCount: UInt64) async throws(ImageError) {
        do throws(BlockError) { try await device.resize(to: byteCount) } catch { throw .device(error) }
    }

    /// Writes the header and everything behind it in the first cluster, durably.
    ///
    /// Gives up the table of feature names, which is for messages alone, when it takes the room of something else.
    func writeHeader() async throws(ImageError) {
        if (try? header.encoded()) == nil { header.extensions.removeAll { if case .featureNames = $0 { true } else { false } } }
        let bytes = try decoding { () throws(FormatError) in try header.encoded() }
        try await write(bytes, at: 0)
        try await flush()
    }

    /// A table of 64-bit numbers.
    ///
    /// - Precondition: the caller has bounded `count`.
    func readEntries(at offset: UInt64, count: Int) async throws(ImageError) -> [UInt64] {
        let bytes = try await read(at: offset, count: count * 8)
        let span = bytes.rawBytes
        var entries: [UInt64] = []
        entries.reserveCapacity(count)
        for index in 0..<count { entries.append(span.bigEndian(at: index * 8)) }
        return entries
    }

    func writeEntries(_ entries: some Sequence<UInt64>, at offset: UInt64, paddedTo byteCount: Int = 0) async throws(ImageError) {
        var out = ByteBuilder()
        for entry in entries { out.append(entry) }
        out.pad(to: byteCount)
        try await write(out.bytes, at: offset)
    }

    func writeEntry(_ entry: UInt64, at offset: UInt64) async throws(ImageError) {
        try await writeEntries(CollectionOfOne(entry), at: offset)
    }

    /// The snapshots of the image, in the table's order.
    public func snapshots() async throws(ImageError) -> [SnapshotEntry] {
        try await snapshotTable().entries
    }

    /// Read in growing pieces: how long the table is, only its entries tell.
    func snapshotTable() async throws(ImageError) -> (entries: [SnapshotEntry], byteCount: Int) {
        guard header.snapshotCount > 0 else { return ([], 0) }
        let limit = Int(clamping: min(UInt64(FormatLimits.snapshotTableByteCount), byteCount - min(byteCount, header.snapshotTableOffset)))
        var count = 64 << 10
        while true {
            let bytes = try await read(at: header.snapshotTableOffset, count: min(count, limit))
            do throws(FormatError) {
                let (entries, consumed) = try SnapshotEntry.decodeTable(bytes.rawBytes, count: Int(header.snapshotCount), in: geometry)
                return (entries, consumed)
            } catch {
                guard count < limit, error.kind == .corrupt else { throw .format(error) }
                count *= 8
            }
        }
    }

    /// What can be told of the encryption without a key; nil when it is not LUKS, or its header is damaged.
    public func luksHeader() async throws(ImageError) -> LUKSHeader? {
        guard let place = header.encryptionHeader, place.byteCount >= UInt64(LUKSHeader.byteCount), place.offset < byteCount else { return nil }
        let bytes = try await read(at: place.offset, count: LUKSHeader.byteCount)
        return LUKSHeader(decoding: bytes.rawBytes)
    }

    /// The bitmaps that are stored in the image. Empty when the extension is there but was not kept up by the last writer.
    public func bitmaps() async throws(ImageError) -> [BitmapDirectoryEntry] {
        guard let place = header.bitmaps, header.autoclearFeatures.contains(.bitmaps) else { return [] }
        guard place.directoryOffset < byteCount, place.directoryByteCount <= byteCount - place.directoryOffset else {
            throw .format(.corrupt("the bitmap directory lies outside of the file"))
        }
        let bytes = try await read(at: place.directoryOffset, count: Int(place.directoryByteCount))
        return try decoding { () throws(FormatError) in
            try BitmapDirectoryEntry.decodeDirectory(bytes.rawBytes, count: Int(place.bitmapCount), in: geometry)
        }
    }
}
