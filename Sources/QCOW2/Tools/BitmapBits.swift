/// The bits of a dirty bitmap, as they are stored: bit n, lowest of a byte first, stands for the n-th run of guest bytes.
public struct BitmapBits: Equatable, Sendable {
    /// Of the disk.
    public let virtualByteCount: UInt64
    /// log2 of the bytes for each bit, 9…31.
    public let granularityBits: Int
    /// Bits behind the last one are 0.
    var bytes: [UInt8]

    /// No bit is set.
    ///
    /// - Precondition: the bits take at most 512 MiB (`BitmapDirectoryEntry.tableEntryCount`).
    init(virtualByteCount: UInt64, granularityBits: Int) {
        self.virtualByteCount = virtualByteCount
        self.granularityBits = granularityBits
        let bitCount = Self.bitCount(virtualByteCount, granularityBits)
        precondition(bitCount <= UInt64(FormatLimits.bitmapByteCount) * 8)
        bytes = [UInt8](repeating: 0, count: Int((bitCount + 7) / 8))
    }

    static func bitCount(_ byteCount: UInt64, _ granularityBits: Int) -> UInt64 {
        byteCount >> UInt64(granularityBits) + (byteCount & (1 << UInt64(granularityBits) - 1) == 0 ? 0 : 1)
    }

    var bitCount: Int { Int(Self.bitCount(virtualByteCount, granularityBits)) }

    func isSet(_ bit: Int) -> Bool { bytes[bit >> 3] >> UInt8(bit & 7) & 1 == 1 }

    /// Whether the bit is set that stands for the guest byte at `offset`.
    ///
    /// - Precondition: inside of the disk.
    public func contains(_ offset: UInt64) -> Bool { isSet(Int(offset >> UInt64(granularityBits))) }

    /// Bits of a range of positions.
    mutating func set(_ range: Range<Int>) {
        var bit = range.lowerBound
        while bit < range.upperBound {
            if bit & 7 == 0, range.upperBound - bit >= 8 {
                bytes[bit >> 3] = 0xff
                bit += 8
            } else {
                bytes[bit >> 3] |= 1 << UInt8(bit & 7)
                bit += 1
            }
        }
    }

    mutating func clearTail() {
        if bitCount & 7 != 0, let last = bytes.indices.last { bytes[last] &= 1 << UInt8(bitCount & 7) - 1 }
    }

    /// Sets the bits of everything that is set in `other`, of a disk of the same size: what a coarse bit covers is set as a whole.
    mutating func formUnion(_ other: BitmapBits) {
        if other.granularityBits == granularityBits {
            for index in bytes.indices { bytes[index] |= other.bytes[index] }
            return
        }
        let count = other.bitCount
        var bit = 0
        while bit < count {
            if bit & 7 == 0, other.bytes[bit >> 3] == 0 {
                bit += 8
                continue
            }
            if other.isSet(bit) {
                let start = UInt64(bit) << UInt64(other.granularityBits)
                let end = min(start + 1 << UInt64(other.granularityBits), virtualByteCount)
                set(Int(start >> UInt64(granularityBits))..<Int((end - 1) >> UInt64(granularityBits)) + 1)
            }
            bit += 1
        }
    }

    /// The same bits for a disk of another size: cut off, or with none set in what is new.
    func resized(to byteCount: UInt64) throws(ImageError) -> BitmapBits {
        guard Self.bitCount(byteCount, granularityBits) <= UInt64(FormatLimits.bitmapByteCount) * 8 else {
            throw .refused("a bitmap would be larger than 512 MiB")
        }
        var resized = BitmapBits(virtualByteCount: byteCount, granularityBits: granularityBits)
        let count = min(bytes.count, resized.bytes.count)
        resized.bytes.replaceSubrange(..<count, with: bytes[..<count])
        resized.clearTail()
        return resized
    }
}
