/// An entry of the refcount table: where the refcount block for a run of host clusters is.
///
/// Spec: qcow2, "Host cluster management", Refcount table entry.
public struct RefcountTableEntry: Equatable, Hashable, Sendable {
    public var rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    public static let byteCount = 8
    private static let offsetMask: UInt64 = ~0x1ff

    /// Where the block starts in the image, unchecked; 0 when there is none.
    public var blockOffset: UInt64 { rawValue & Self.offsetMask }
    public var isAllocated: Bool { blockOffset != 0 }
    /// Bits that must be 0 and are not.
    public var reservedBits: UInt64 { rawValue & ~Self.offsetMask }

    /// Where the block starts; nil when there is none: all its refcounts are 0.
    ///
    /// - Throws: `.corrupt` for an offset inside of a cluster. Says nothing of the size of the file.
    public func block(in geometry: ImageGeometry) throws(FormatError) -> UInt64? {
        let offset = blockOffset
        guard offset != 0 else { return nil }
        guard geometry.isAligned(offset) else {
            throw .corrupt("the refcount table names a block at \(offset.hex), inside of a cluster")
        }
        return offset
    }
}

/// Refcounts of one width, as they stand in a refcount block: 1, 2, 4, 8, 16, 32 or 64 bits each. Within a byte the first is in the lowest
/// bits; wider ones are big-endian.
///
/// Spec: qcow2, "Host cluster management", Refcount block entry.
public struct RefcountWidth: Equatable, Hashable, Sendable {
    /// log2 of the width in bits, 0…6.
    public let order: Int

    /// - Precondition: 0…6.
    public init(order: Int) {
        precondition(ImageGeometry.refcountOrderRange.contains(order), "refcount order \(order)")
        self.order = order
    }

    public var bitCount: Int { 1 << order }
    /// The largest count that fits.
    public var maximum: UInt64 { order == 6 ? .max : (1 << UInt64(bitCount)) - 1 }

    /// The refcount of the `index`-th cluster of a block. Traps outside of the span.
    public func refcount(at index: Int, in block: RawSpan) -> UInt64 {
        switch order {
        case 0, 1, 2:
            let bit = index << order
            return UInt64(block.bigEndian(UInt8.self, at: bit >> 3) >> UInt8(bit & 7)) & maximum
        case 3: return UInt64(block.bigEndian(UInt8.self, at: index))
        case 4: return UInt64(block.bigEndian(UInt16.self, at: index * 2))
        case 5: return UInt64(block.bigEndian(UInt32.self, at: index * 4))
        default: return block.bigEndian(UInt64.self, at: index * 8)
        }
    }

    /// Sets the refcount of the `index`-th cluster of a block. Traps outside of the span.
    ///
    /// - Precondition: `refcount` is at most `maximum`.
    public func setRefcount(_ refcount: UInt64, at index: Int, in block: inout MutableRawSpan) {
        precondition(refcount <= maximum, "refcount \(refcount) in \(bitCount) bits")
        switch order {
        case 0, 1, 2:
            let bit = index << order
            let shift = UInt8(bit & 7)
            let mask = UInt8(maximum) << shift
            let old = block.bytes.bigEndian(UInt8.self, at: bit >> 3)
            block.store(bigEndian: old & ~mask | UInt8(refcount) << shift, at: bit >> 3)
        case 3: block.store(bigEndian: UInt8(refcount), at: index)
        case 4: block.store(bigEndian: UInt16(refcount), at: index * 2)
        case 5: block.store(bigEndian: UInt32(refcount), at: index * 4)
        default: block.store(bigEndian: refcount, at: index * 8)
        }
    }
}
