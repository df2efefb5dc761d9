/// Where the bytes of a compressed cluster are: any place in the image, aligned to nothing.
///
///     61…x                       x-1…0                      x = 62 - (cluster_bits - 8)
///     | further 512-byte sectors | offset of the first byte |
///
/// Spec: qcow2, "Cluster mapping", Compressed Clusters Descriptor.
public struct CompressedCluster: Equatable, Hashable, Sendable {
    /// Of the first byte, in the image.
    public let hostOffset: UInt64
    /// Sectors touched beyond that of the first byte: fewer than fit in two clusters.
    public let furtherSectorCount: UInt64

    public static let sectorByteCount: UInt64 = 512

    /// Reads bits 0…61 of an L2 entry; the others are ignored.
    public init(rawDescriptor: UInt64, in geometry: ImageGeometry) {
        let offsetBits = Self.offsetBits(in: geometry)
        hostOffset = rawDescriptor & ((1 << offsetBits) - 1)
        furtherSectorCount = (rawDescriptor & ((1 << 62) - 1)) >> offsetBits
    }

    /// `byteCount` bytes at `hostOffset`. Nil when they do not fit in a descriptor of this geometry.
    public init?(hostOffset: UInt64, byteCount: Int, in geometry: ImageGeometry) {
        let offsetBits = Self.offsetBits(in: geometry)
        guard byteCount > 0, hostOffset < 1 << min(offsetBits, 56) else { return nil }
        let further = (hostOffset + UInt64(byteCount) - 1) / Self.sectorByteCount - hostOffset / Self.sectorByteCount
        guard further < 1 << (62 - offsetBits) else { return nil }
        self.hostOffset = hostOffset
        furtherSectorCount = further
    }

    func rawDescriptor(in geometry: ImageGeometry) -> UInt64 { furtherSectorCount << Self.offsetBits(in: geometry) | hostOffset }

    /// The most bytes that the packed data can have: those up to the end of the last sector. At most two clusters; the file may end before.
    public var byteCount: Int {
        Int((furtherSectorCount + 1) * Self.sectorByteCount - hostOffset % Self.sectorByteCount)
    }

    /// Host clusters touched, as offsets of the first and of the last (equal or neighbours).
    public func hostClusters(in geometry: ImageGeometry) -> (first: UInt64, last: UInt64) {
        (hostOffset & ~geometry.clusterMask, (hostOffset + UInt64(byteCount) - 1) & ~geometry.clusterMask)
    }

    private static func offsetBits(in geometry: ImageGeometry) -> UInt64 { UInt64(62 - (geometry.clusterBits - 8)) }
}
