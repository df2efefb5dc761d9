/// The first cluster of an image: the fixed fields, the extensions behind them, and the name of the backing file.
///
///     0       4         8                     16                  20             24             32
///     | magic | version | backing name offset | backing name size | cluster bits | virtual size | encryption …
///     36        40          48                56                      60          64                 72
///     | L1 size | L1 offset | refcount offset | refcount clusters | snapshots | snapshot offset |    version 2 ends here
///     72             80           88          96               100             104
///     | incompatible | compatible | autoclear | refcount order | header length | compression, zeroes… |
///
/// Spec: qcow2, "Header". A value of this type obeys the rules that can be checked without the file; whether offsets lie inside of that,
/// whoever opens it checks.
public struct ImageHeader: Equatable, Sendable {
    static let magic: UInt32 = 0x5146_49fb
    static let version2ByteCount = 72
    static let version3ByteCount = 104

    public enum Encryption: UInt32, Equatable, Sendable {
        case none = 0
        case aes = 1
        case luks = 2
    }

    /// 2 or 3.
    public var version: UInt32
    /// As it stands in the image, not necessarily text; nil without a backing file. At most 1023 bytes.
    public var backingFileName: [UInt8]?
    public var geometry: ImageGeometry
    /// Of the virtual disk in bytes, at most 2^63 - 1.
    public var virtualByteCount: UInt64
    public var encryption: Encryption
    /// Of the active L1 table. Enough for `virtualByteCount`, at most 32 MiB of them.
    public var l1EntryCount: UInt32
    public var l1TableOffset: UInt64
    public var refcountTableOffset: UInt64
    /// At most 8 MiB of them; 0 in images that need repair.
    public var refcountTableClusterCount: UInt32
    /// At most 65536.
    public var snapshotCount: UInt32
    public var snapshotTableOffset: UInt64
    public var incompatibleFeatures: IncompatibleFeatures
    public var compatibleFeatures: CompatibleFeatures
    public var autoclearFeatures: AutoclearFeatures
    public var compression: CompressionType
    /// Bytes of the header behind the field of the compression type and its padding, from byte 112 on: kept as they are.
    public var unknownFields: [UInt8]
    /// In their order, without the end.
    public var extensions: [HeaderExtension]

    /// A header without tables, for a new image.
    public init(version: UInt32, geometry: ImageGeometry, virtualByteCount: UInt64) {
        self.version = version
        self.geometry = geometry
        self.virtualByteCount = virtualByteCount
        backingFileName = nil
        encryption = .none
        l1EntryCount = 0
        l1TableOffset = 0
        refcountTableOffset = 0
        refcountTableClusterCount = 0
        snapshotCount = 0
        snapshotTableOffset = 0
        incompatibleFeatures = geometry.hasExtendedL2 ? .extendedL2 : []
        compatibleFeatures = []
        autoclearFeatures = []
        compression = .zlib
        unknownFields = []
        extensions = []
    }
}

extension ImageHeader {
    public var clusterByteCount: Int { geometry.clusterByteCount }
    public var l1TableByteCount: UInt64 { UInt64(l1EntryCount) * 8 }
    public var refcountTableByteCount: UInt64 { UInt64(refcountTableClusterCount) << UInt64(geometry.clusterBits) }

    /// Where the LUKS header is, in the image.
    var encryptionHeader: (offset: UInt64, byteCount: UInt64)? {
        for case .encryption(let offset, let byteCount) in extensions where encryption == .luks { return (offset, byteCount) }
        return nil
    }

    /// The name of the driver of the backing file, when the image tells it.
    public var backingFormat: [UInt8]? {
        for case .backingFormat(let name) in extensions { return name }
        return nil
    }

    /// Guest clusters lie in another file.
    public var hasDataFile: Bool { incompatibleFeatures.contains(.externalDataFile) }
    /// The other file is a raw image of the disk, and must stay one.
    public var hasRawDataFile: Bool { hasDataFile && autoclearFeatures.contains(.rawExternalData) }

    /// The name of the external data file, when the image tells it.
    public var dataFileName: [UInt8]? {
        for case .dataFileName(let name) in extensions { return name }
        return nil
    }

    /// The bitmaps extension, consistent or not (`autoclearFeatures`).
    public var bitmaps: BitmapsExtension? {
        for case .bitmaps(let bitmaps) in extensions { return bitmaps }
        return nil
    }

    public var featureNames: [FeatureName] {
        for case .featureNames(let names) in extensions { return names }
        return []
    }

    /// Refuses what nobody here can read: unknown incompatible features, by the names that the image gives them, and encryption.
    public func requireReadable() throws(FormatError) {
        let unknown = incompatibleFeatures.subtracting(.known)
        guard unknown.isEmpty else {
            let names = (0..<64).filter { unknown.rawValue >> UInt64($0) & 1 == 1 }.map { bit in
                featureNames.first { $0.kind == .incompatible && $0.bit == bit && !$0.name.isEmpty }?.name ?? "unknown feature (bit \(bit))"
            }
            throw .unsupported("the image needs what this version cannot do: \(names.joined(separator: ", "))")
        }
        switch encryption {
        case .none: break
        case .aes: throw .unsupported("the image is encrypted (AES, as qcow did it): encryption is not supported")
        case .luks: throw .unsupported("the image is encrypted (LUKS): encryption is not supported")
        }
    }
}
