import Block

/// One optional section behind the header.
///
///     0      4        8
///     | type | length | data, padded to a multiple of 8 |
///
/// Spec: qcow2, "Header extensions".
public enum HeaderExtension: Equatable, Sendable {
    /// The driver of the backing file, such as `raw`. Not necessarily text.
    case backingFormat([UInt8])
    case featureNames([FeatureName])
    case bitmaps(BitmapsExtension)
    /// Where the encryption header is. Images that have one are refused.
    case encryption(offset: UInt64, byteCount: UInt64)
    case dataFileName([UInt8])
    /// Kept byte for byte.
    case unknown(type: UInt32, data: [UInt8])

    static let endType: UInt32 = 0
    static let backingFormatType: UInt32 = 0xe279_2aca
    static let featureNamesType: UInt32 = 0x6803_f857
    static let bitmapsType: UInt32 = 0x2385_2875
    static let encryptionType: UInt32 = 0x0537_be77
    static let dataFileNameType: UInt32 = 0x4441_5441

    public var type: UInt32 {
        switch self {
        case .backingFormat: Self.backingFormatType
        case .featureNames: Self.featureNamesType
        case .bitmaps: Self.bitmapsType
        case .encryption: Self.encryptionType
        case .dataFileName: Self.dataFileNameType
        case .unknown(let type, _): type
        }
    }

    /// - Throws: `.corrupt` for data of a wrong length or with fields that break their rules.
    init(type: UInt32, data: [UInt8], in geometry: ImageGeometry) throws(FormatError) {
        switch type {
        case Self.backingFormatType:
            guard data.count <= FormatLimits.backingFormatByteCount else {
                throw .corrupt("the name of the backing format has \(data.count) bytes; at most \(FormatLimits.backingFormatByteCount)")
            }
            self = .backingFormat(data)
        case Self.featureNamesType: self = .featureNames(FeatureName.decodeTable(data))
        case Self.bitmapsType: self = .bitmaps(try BitmapsExtension(data, in: geometry))
        case Self.encryptionType:
            guard data.count == 16 else { throw .corrupt("the encryption extension has \(data.count) bytes instead of 16") }
            let fields = data.rawBytes
            self = .encryption(offset: fields.bigEndian(at: 0), byteCount: fields.bigEndian(at: 8))
        case Self.dataFileNameType: self = .dataFileName(data)
        default: self = .unknown(type: type, data: data)
        }
    }

    var data: [UInt8] {
        switch self {
        case .backingFormat(let name), .dataFileName(let name): return name
        case .featureNames(let names): return names.flatMap(\.encoded)
        case .bitmaps(let bitmaps): return bitmaps.encoded
        case .encryption(let offset, let byteCount):
            var out = ByteBuilder()
            out.append(offset)
            out.append(byteCount)
            return out.bytes
        case .unknown(_, let data): return data
        }
    }

    func append(to out: inout ByteBuilder) {
        let data = data
        out.append(type)
        out.append(UInt32(data.count))
        out.append(contentsOf: data)
        out.pad(toMultipleOf: 8)
    }
}

/// Where the directory of the bitmaps is.
///
/// Spec: qcow2, "Bitmaps extension".
public struct BitmapsExtension: Equatable, Sendable {
    static let byteCount = 24

    /// 1…65535.
    public var bitmapCount: UInt32
    /// In bytes, in the image; at most `FormatLimits.bitmapDirectoryByteCount`.
    public var directoryByteCount: UInt64
    /// Aligned to a cluster.
    public var directoryOffset: UInt64

    public init(bitmapCount: UInt32, directoryByteCount: UInt64, directoryOffset: UInt64) {
        self.bitmapCount = bitmapCount
        self.directoryByteCount = directoryByteCount
        self.directoryOffset = directoryOffset
    }

    /// Of the directory, by number.
    func clusters(in geometry: ImageGeometry) -> Range<UInt64> {
        let first = directoryOffset >> UInt64(geometry.clusterBits)
        return first..<first + geometry.clusterCount(of: directoryByteCount)
    }

    init(_ data: [UInt8], in geometry: ImageGeometry) throws(FormatError) {
        guard data.count == Self.byteCount else { throw .corrupt("the bitmaps extension has \(data.count) bytes instead of 24") }
        let fields = data.rawBytes
        bitmapCount = fields.bigEndian(at: 0)
        directoryByteCount = fields.bigEndian(at: 8)
        directoryOffset = fields.bigEndian(at: 16)
        guard fields.bigEndian(UInt32.self, at: 4) == 0 else { throw .corrupt("the bitmaps extension has a reserved field that is not 0") }
        guard bitmapCount > 0 else { throw .corrupt("a bitmaps extension without bitmaps") }
        guard bitmapCount <= UInt32(FormatLimits.bitmapCount) else {
            throw .unsupported("\(bitmapCount) bitmaps; at most \(FormatLimits.bitmapCount)")
        }
        guard directoryByteCount > 0, directoryByteCount <= UInt64(FormatLimits.bitmapDirectoryByteCount) else {
            throw .corrupt(
                "the bitmap directory has \(directoryByteCount) bytes; 1 to \(FormatLimits.bitmapDirectoryByteCount) are possible")
        }
        guard geometry.isAligned(directoryOffset), directoryOffset != 0 else {
            throw .corrupt("the bitmap directory is at \(directoryOffset.hex), inside of a cluster or of the header")
        }
    }

    var encoded: [UInt8] {
        var out = ByteBuilder()
        out.append(bitmapCount)
        out.append(UInt32(0))
        out.append(directoryByteCount)
        out.append(directoryOffset)
        return out.bytes
    }
}
