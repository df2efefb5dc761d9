import Block
import QCOW2
import Testing

@Suite struct `Refcount widths` {
    @Test(arguments: 0...6)
    func `keep every value of every entry apart`(order: Int) {
        let width = RefcountWidth(order: order)
        let count = 64 * 8 >> order
        var block = [UInt8](repeating: 0, count: 64)
        let values = (0..<count).map { index in
            let pattern = UInt64(index) &* 0x9e37_79b9_7f4a_7c15
            return index == 0 ? width.maximum : pattern & width.maximum
        }
        do {
            var span = block.mutableSpan
            var bytes = span.mutableBytes
            for index in values.indices { width.setRefcount(values[index], at: index, in: &bytes) }
        }
        for index in values.indices { #expect(width.refcount(at: index, in: block.rawBytes) == values[index]) }
    }

    @Test func `of less than a byte begin with the lowest bits`() {
        #expect(RefcountWidth(order: 0).refcount(at: 1, in: ([0b10] as [UInt8]).rawBytes) == 1)
        #expect(RefcountWidth(order: 1).refcount(at: 1, in: ([0b1100] as [UInt8]).rawBytes) == 3)
        #expect(RefcountWidth(order: 2).refcount(at: 0, in: ([0x5a] as [UInt8]).rawBytes) == 10)
    }
}

@Suite struct `L2 entries` {
    static let plain = geometry(16)
    static let extended = geometry(16, extended: true)

    @Test func `say what their cluster is`() throws {
        func mapping(_ raw: UInt64, _ bitmap: UInt64 = 0, _ geometry: ImageGeometry = Self.plain, data: Bool = false) throws
            -> ClusterMapping
        {
            try L2Entry(rawDescriptor: raw, subclusters: SubclusterBitmap(rawValue: bitmap)).mapping(in: geometry, hasDataFile: data)
        }
        #expect(try mapping(0) == .unallocated)
        #expect(try mapping(1) == .zero(preallocated: nil))
        #expect(try mapping(0x8000_0000_0005_0001) == .zero(preallocated: 0x50000))
        #expect(try mapping(0x8000_0000_0005_0000) == .data(0x50000))
        #expect(try mapping(0x8000_0000_0000_0000, data: true) == .data(0))
        #expect(try mapping(0, 0, Self.extended) == .unallocated)
        #expect(try mapping(0, 0xffff_ffff_0000_0000, Self.extended) == .zero(preallocated: nil))
        #expect(try mapping(0x50000, 0xffff_ffff, Self.extended) == .data(0x50000))
        #expect(try mapping(0x50000, 0x2_0000_0001, Self.extended) == .subclusters(0x50000, SubclusterBitmap(allocated: 1, zero: 2)))
        #expect(try mapping(0, 0x2_0000_0000, Self.extended) == .subclusters(nil, SubclusterBitmap(allocated: 0, zero: 2)))
    }

    @Test(arguments: [(0x50200, 0), (0x50000, 0x1_0000_0001), (0, 1)] as [(UInt64, UInt64)])
    func `that contradict themselves are refused`(raw: UInt64, bitmap: UInt64) {
        let entry = L2Entry(rawDescriptor: raw, subclusters: SubclusterBitmap(rawValue: bitmap))
        #expect(throws: FormatError.self) { try entry.mapping(in: Self.extended, hasDataFile: false) }
    }

    @Test func `know the bits that nobody may set`() {
        #expect(L2Entry(rawDescriptor: 0x8000_0000_0005_0001).reservedBits(in: Self.plain) == 0)
        #expect(L2Entry(rawDescriptor: 0x0100_0000_0005_0002).reservedBits(in: Self.plain) == 0x0100_0000_0000_0002)
        #expect(L2Entry(rawDescriptor: 0x50001).reservedBits(in: Self.extended) == 1)
    }

    @Test(arguments: 9...21)
    func `place compressed bytes anywhere`(bits: Int) throws {
        let geometry = geometry(bits)
        for (offset, count) in [(0x50000, 1), (0x501ff, 1), (0x501ff, 2), (0x50123, 1 << bits)] as [(UInt64, Int)] {
            let cluster = try #require(CompressedCluster(hostOffset: offset, byteCount: count, in: geometry))
            let entry = L2Entry(cluster, in: geometry)
            #expect(try entry.mapping(in: geometry, hasDataFile: false) == .compressed(cluster))
            #expect(cluster.byteCount >= count && cluster.byteCount < count + 512)
        }
        #expect(CompressedCluster(hostOffset: 1 << 56, byteCount: 1, in: geometry) == nil)
    }

    @Test(arguments: 9...21)
    func `of any bits lead to no trap`(bits: Int) {
        for raw in [UInt64.max, .max >> 1, 1 << 62, .max << 9, 0xbfff_ffff_ffff_ffff] {
            for geometry in [geometry(bits), geometry(max(14, bits), extended: true)] {
                let entry = L2Entry(rawDescriptor: raw, subclusters: SubclusterBitmap(rawValue: raw))
                if case .compressed(let cluster)? = try? entry.mapping(in: geometry, hasDataFile: false) {
                    #expect(cluster.byteCount <= 2 * geometry.clusterByteCount)
                    #expect(cluster.hostClusters(in: geometry).last >= cluster.hostClusters(in: geometry).first)
                }
            }
        }
    }
}

@Suite struct `Entries of other tables` {
    @Test func `name aligned places or nothing`() throws {
        let geometry = geometry(16)
        #expect(try L1Entry(rawValue: 0x8000_0000_0003_0000).table(in: geometry) == 0x30000)
        #expect(try L1Entry(rawValue: 1 << 63).table(in: geometry) == nil)
        #expect(throws: FormatError.self) { try L1Entry(rawValue: 0x30200).table(in: geometry) }
        #expect(try RefcountTableEntry(rawValue: 0x20000).block(in: geometry) == 0x20000)
        #expect(throws: FormatError.self) { try RefcountTableEntry(rawValue: 0x20200).block(in: geometry) }
        #expect(try BitmapTableEntry(rawValue: 0, in: geometry) == .allZeroes)
        #expect(try BitmapTableEntry(rawValue: 1, in: geometry) == .allOnes)
        #expect(try BitmapTableEntry(rawValue: 0x70000, in: geometry) == .cluster(0x70000))
        for bad in [0x70001, 0x70200, 2, 1 << 63] as [UInt64] {
            #expect(throws: FormatError.self) { try BitmapTableEntry(rawValue: bad, in: geometry) }
        }
    }
}

func geometry(_ bits: Int, order: Int = 4, extended: Bool = false) -> ImageGeometry {
    guard let geometry = ImageGeometry(clusterBits: bits, refcountOrder: order, hasExtendedL2: extended) else { preconditionFailure() }
    return geometry
}
