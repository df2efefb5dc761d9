/// What a new image is to be like. Names, defaults and rules are those of `qemu-img create -o`.
public struct ImageOptions: Equatable, Sendable {
    /// How much of the disk has its place from the start.
    public enum Preallocation: String, Equatable, Sendable, CaseIterable {
        case off
        /// All clusters are mapped; the file is sparse.
        case metadata
        /// … and the host has given the space.
        case falloc
        /// … and zeroes have been written.
        case full
    }

    public struct DataFile: Equatable, Sendable {
        /// As it is to stand in the image.
        public var name: [UInt8]
        /// The other file is a raw image of the disk, and stays one.
        public var isRaw: Bool

        public init(name: [UInt8], isRaw: Bool = false) {
            self.name = name
            self.isRaw = isRaw
        }
    }

    /// 2 (`compat=0.10`) or 3 (`compat=1.1`).
    public var version: UInt32 = 3
    /// A power of two, 512 bytes to 2 MiB; at least 16 KiB with extended L2 entries.
    public var clusterByteCount = 65536
    /// 1, 2, 4 … 64.
    public var refcountBitCount = 16
    public var lazyRefcounts = false
    public var extendedL2 = false
    public var compression = CompressionType.zlib
    /// As it is to stand in the image; at most 1023 bytes.
    public var backingFileName: [UInt8]?
    public var backingFormat: [UInt8]?
    public var dataFile: DataFile?
    public var preallocation = Preallocation.off

    public init() {}

    /// - Throws: `.refused` naming the option that is wrong, or does not go with another.
    public func geometry() throws(ImageError) -> ImageGeometry {
        guard version == 2 || version == 3 else { throw .refused("compat is 0.10 or 1.1") }
        let sizes = ImageGeometry.clusterBitsRange.map { 1 << $0 }
        guard sizes.contains(clusterByteCount) else {
            throw .refused("Cluster size must be a power of two between 512 and 2048k, not \(clusterByteCount)")
        }
        guard ImageGeometry.refcountOrderRange.contains(where: { 1 << $0 == refcountBitCount }) else {
            throw .refused("Refcount width must be a power of two and may not exceed 64 bits, not \(refcountBitCount)")
        }
        if version == 2 {
            guard refcountBitCount == 16 else { throw .refused("Different refcount widths than 16 bits need compat=1.1") }
            guard !lazyRefcounts else { throw .refused("Lazy refcounts need compat=1.1") }
            guard !extendedL2 else { throw .refused("Extended L2 entries need compat=1.1") }
            guard compression == .zlib else { throw .refused("Compression type \(compression.name) needs compat=1.1") }
            guard dataFile == nil else { throw .refused("External data files need compat=1.1") }
        }
        if extendedL2, clusterByteCount < 16384 { throw .refused("Extended L2 entries need clusters of at least 16384 bytes") }
        if let dataFile {
            guard !dataFile.name.isEmpty else { throw .refused("the data file needs a name") }
            guard !dataFile.isRaw || backingFileName == nil else {
                throw .refused("A backing file and a raw data file (data_file_raw) exclude each other")
            }
        }
        guard preallocation == .off || backingFileName == nil || extendedL2 else {
            throw .refused("Backing file and preallocation can only be used at the same time if extended_l2 is enabled")
        }
        guard backingFormat == nil || backingFileName != nil else { throw .refused("a backing format without a backing file") }
        guard backingFileName?.count ?? 0 <= FormatLimits.backingFileNameByteCount else {
            throw .refused("the name of the backing file has more than \(FormatLimits.backingFileNameByteCount) bytes")
        }
        guard backingFormat?.count ?? 0 <= FormatLimits.backingFormatByteCount else {
            throw .refused("the name of the backing format has more than \(FormatLimits.backingFormatByteCount) bytes")
        }
        let geometry = ImageGeometry(
            clusterBits: clusterByteCount.trailingZeroBitCount, refcountOrder: refcountBitCount.trailingZeroBitCount,
            hasExtendedL2: extendedL2)
        guard let geometry else { throw .refused("impossible cluster size") }
        return geometry
    }

    /// The header of such an image, without places of tables.
    func header(virtualByteCount: UInt64) throws(ImageError) -> ImageHeader {
        let geometry = try geometry()
        let entryCount = geometry.l1EntryCount(for: virtualByteCount)
        guard virtualByteCount <= FormatLimits.virtualByteCount, entryCount * 8 <= UInt64(FormatLimits.l1TableByteCount) else {
            throw .refused(
                "The image size is too large for the format with clusters of \(clusterByteCount) bytes (try using a larger cluster size)")
        }
        var header = ImageHeader(version: version, geometry: geometry, virtualByteCount: virtualByteCount)
        header.l1EntryCount = UInt32(entryCount)
        header.compression = compression
        if compression != .zlib { header.incompatibleFeatures.insert(.compressionType) }
        if lazyRefcounts { header.compatibleFeatures.insert(.lazyRefcounts) }
        header.backingFileName = backingFileName
        if let backingFormat { header.extensions.append(.backingFormat(backingFormat)) }
        if let dataFile {
            header.incompatibleFeatures.insert(.externalDataFile)
            if dataFile.isRaw { header.autoclearFeatures.insert(.rawExternalData) }
            header.extensions.append(.dataFileName(dataFile.name))
        }
        if version == 3, geometry.clusterBits > 9 {
            // The table is for messages alone: left out where it would take the room of others, such as the bitmaps.
            let plain = header
            header.extensions.append(.featureNames(FeatureName.all))
            if (try? header.encoded()) == nil { header = plain }
        }
        _ = try decoding { () throws(FormatError) in try header.encoded() }
        return header
    }
}
