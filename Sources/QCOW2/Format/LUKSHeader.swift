internal import Block

/// What the head of a LUKS header tells without a key. Such images are described, not opened.
///
///     0       6         8        40            72     104              108         …   164                   168    208
///     | magic | version | cipher | cipher mode | hash | payload offset | key bytes | … | master key rounds | UUID | 8 key slots
///
/// Offsets are in sectors of 512 bytes, text ends at its first NUL. Spec: LUKS On-Disk Format 1.2, "LUKS partition header".
public struct LUKSHeader: Equatable, Sendable {
    public static let byteCount = 592
    private static let magic: [UInt8] = [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe]
    private static let slotCount = 8
    private static let slotByteCount = 48
    private static let activeMark: UInt32 = 0x00ac_71f3

    public struct Slot: Equatable, Sendable {
        public var isActive: Bool
        public var iterationCount: UInt32
        /// Of the key material, in bytes from the start of the LUKS header.
        public var offset: UInt64
        public var stripeCount: UInt32
    }

    /// Such as `aes`.
    public let cipherName: String
    /// Such as `xts`.
    public let cipherMode: String
    /// How the initial vector of a sector is made: `plain64`.
    public let vectorAlgorithm: String
    /// Of `essiv`.
    public let vectorHash: String?
    public let hash: String
    public let keyByteCount: UInt32
    public let uuid: String
    /// In bytes from the start of the LUKS header.
    public let payloadOffset: UInt64
    public let masterKeyIterationCount: UInt32
    public let slots: [Slot]

    /// Nil for anything but version 1.
    public init?(decoding bytes: RawSpan) {
        guard bytes.byteCount >= Self.byteCount, bytes.bytes(at: 0, count: 6) == Self.magic, bytes.bigEndian(UInt16.self, at: 6) == 1 else {
            return nil
        }
        func text(_ position: Int, _ count: Int) -> String {
            String(decoding: bytes.bytes(at: position, count: count).prefix { $0 != 0 }, as: UTF8.self)
        }
        cipherName = text(8, 32)
        let mode = text(40, 32).split(separator: "-", maxSplits: 1, omittingEmptySubsequences: false)
        let vector = (mode.count > 1 ? mode[1] : "").split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
        cipherMode = String(mode[0])
        vectorAlgorithm = String(vector[0])
        vectorHash = vector.count > 1 ? String(vector[1]) : nil
        hash = text(72, 32)
        payloadOffset = UInt64(bytes.bigEndian(UInt32.self, at: 104)) * 512
        keyByteCount = bytes.bigEndian(at: 108)
        masterKeyIterationCount = bytes.bigEndian(at: 164)
        uuid = text(168, 40)
        var slots: [Slot] = []
        for index in 0..<Self.slotCount {
            let start = 208 + index * Self.slotByteCount
            slots.append(
                Slot(
                    isActive: bytes.bigEndian(UInt32.self, at: start) == Self.activeMark, iterationCount: bytes.bigEndian(at: start + 4),
                    offset: UInt64(bytes.bigEndian(UInt32.self, at: start + 40)) * 512, stripeCount: bytes.bigEndian(at: start + 44)))
        }
        self.slots = slots
    }

    /// Of the cipher: half of the key in XTS mode, which has two.
    public var cipherBitCount: UInt64 { UInt64(keyByteCount) * (cipherMode == "xts" ? 4 : 8) }
}
