/// Features that a reader must know to read the image at all.
///
/// Spec: qcow2, "Header", incompatible_features.
public struct IncompatibleFeatures: OptionSet, Hashable, Sendable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// Refcounts may be too low: repair them before the first write.
    public static let dirty = IncompatibleFeatures(rawValue: 1 << 0)
    /// Found to be damaged: never write, except to repair.
    public static let corrupt = IncompatibleFeatures(rawValue: 1 << 1)
    /// Guest clusters lie in another file, each at its own offset.
    public static let externalDataFile = IncompatibleFeatures(rawValue: 1 << 2)
    /// Compressed clusters are not zlib's.
    public static let compressionType = IncompatibleFeatures(rawValue: 1 << 3)
    public static let extendedL2 = IncompatibleFeatures(rawValue: 1 << 4)

    public static let known: IncompatibleFeatures = [.dirty, .corrupt, .externalDataFile, .compressionType, .extendedL2]
}

/// Features that a reader may ignore.
public struct CompatibleFeatures: OptionSet, Hashable, Sendable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// A writer may leave refcounts behind, if it marks the image dirty.
    public static let lazyRefcounts = CompatibleFeatures(rawValue: 1 << 0)
    public static let known: CompatibleFeatures = [.lazyRefcounts]
}

/// Features that a writer who does not know them must switch off before the first write.
public struct AutoclearFeatures: OptionSet, Hashable, Sendable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// The bitmaps are consistent with the disk.
    public static let bitmaps = AutoclearFeatures(rawValue: 1 << 0)
    /// The external data file can be read without the image.
    public static let rawExternalData = AutoclearFeatures(rawValue: 1 << 1)
    public static let known: AutoclearFeatures = [.bitmaps, .rawExternalData]
}

/// One line of the feature name table: what a bit of a feature field is called.
///
///     0      1     2                       48
///     | kind | bit | name, padded with 0s |
///
/// Spec: qcow2, "Feature name table".
public struct FeatureName: Equatable, Hashable, Sendable {
    public static let byteCount = 48

    public enum Kind: UInt8, Equatable, Hashable, Sendable {
        case incompatible = 0
        case compatible = 1
        case autoclear = 2
    }

    public var kind: Kind
    /// 0…63.
    public var bit: Int
    public var name: String

    public init(_ kind: Kind, bit: Int, _ name: String) {
        self.kind = kind
        self.bit = bit
        self.name = name
    }

    /// The lines of a table. Those of an unknown kind or bit, and an incomplete last one, are left out: the table is for messages alone.
    static func decodeTable(_ bytes: [UInt8]) -> [FeatureName] {
        stride(from: 0, through: bytes.count - byteCount, by: byteCount).compactMap { start in
            guard let kind = Kind(rawValue: bytes[start]), bytes[start + 1] < 64 else { return nil }
            let name = bytes[(start + 2)..<(start + byteCount)].prefix { $0 != 0 }
            return FeatureName(kind, bit: Int(bytes[start + 1]), String(decoding: name, as: UTF8.self))
        }
    }

    /// The line as it stands in the table; names are cut at 46 bytes.
    var encoded: [UInt8] {
        var out = ByteBuilder()
        out.append(kind.rawValue)
        out.append(UInt8(truncatingIfNeeded: bit))
        out.append(contentsOf: name.utf8.prefix(Self.byteCount - 2))
        out.pad(to: Self.byteCount)
        return out.bytes
    }

    /// What we write into new images: the features of this version of the format.
    public static let all: [FeatureName] = [
        FeatureName(.incompatible, bit: 0, "dirty bit"),
        FeatureName(.incompatible, bit: 1, "corrupt bit"),
        FeatureName(.incompatible, bit: 2, "external data file"),
        FeatureName(.incompatible, bit: 3, "compression type"),
        FeatureName(.incompatible, bit: 4, "extended L2 entries"),
        FeatureName(.compatible, bit: 0, "lazy refcounts"),
        FeatureName(.autoclear, bit: 0, "bitmaps"),
        FeatureName(.autoclear, bit: 1, "raw external data"),
    ]
}
