import Block
import QCOW2
import Testing

@Suite struct `Creating an image` {
    @Test(arguments: [9, 12, 16, 21], [0, 3, 4, 6])
    func `gives one without faults`(clusterBits: Int, order: Int) async throws {
        for preallocation in [ImageOptions.Preallocation.off, .metadata] {
            let device = ToolsDevice()
            var options = ImageOptions()
            options.clusterByteCount = 1 << clusterBits
            options.refcountBitCount = 1 << order
            options.preallocation = preallocation
            try await ImageFile.create(device, virtualByteCount: 1_000_000, options)
            #expect(try await isSound(device))
            let report = try await ImageFile.open(device).check()
            #expect(report.allocatedClusterCount == (preallocation == .off ? 0 : report.clusterCount))
            #expect(try await ImageFile.open(device).header.virtualByteCount == 1_000_448)
        }
    }

    @Test func `refuses what contradicts itself`() throws {
        let changes: [(inout ImageOptions) -> Void] = [
            { $0.clusterByteCount = 256 }, { $0.clusterByteCount = 1000 }, { $0.clusterByteCount = 4 << 20 }, { $0.refcountBitCount = 3 },
            { $0.refcountBitCount = 128 }, { $0.version = 4 },
            {
                $0.extendedL2 = true; $0.clusterByteCount = 8192
            },
            {
                $0.version = 2; $0.refcountBitCount = 8
            },
            {
                $0.version = 2; $0.lazyRefcounts = true
            },
            {
                $0.version = 2; $0.compression = .zstd
            },
            {
                $0.backingFileName = [0x61]; $0.preallocation = .metadata
            }, { $0.backingFormat = [0x61] },
            { $0.backingFileName = Array(repeating: 0x61, count: 1024) },
            {
                $0.backingFileName = [0x61]; $0.dataFile = ImageOptions.DataFile(name: [0x62], isRaw: true)
            },
        ]
        for change in changes {
            var options = ImageOptions()
            change(&options)
            #expect(throws: ImageError.self) { try options.geometry() }
        }
    }

    @Test func `refuses more than the tables can map`() async {
        var options = ImageOptions()
        options.clusterByteCount = 512
        let small = options
        await #expect(throws: ImageError.self) { try await ImageFile.create(ToolsDevice(), virtualByteCount: 1 << 40, small) }
        await #expect(throws: ImageError.self) { try await ImageFile.create(ToolsDevice(), virtualByteCount: .max) }
    }
}

@Suite struct `Checking an image` {
    /// Offset of the refcount of a cluster, in an image whose first refcount block is in use: 16 bits each.
    static func refcount(of cluster: UInt64, _ device: ToolsDevice, _ image: ImageFile) -> UInt64 {
        let block = device.peek(image.header.refcountTableOffset + cluster / 256 * 8)
        return block + cluster % 256 * 2
    }

    static func l2(_ device: ToolsDevice, _ image: ImageFile) -> UInt64 { device.peek(image.header.l1TableOffset) & 0xff_ffff_ffff_fe00 }

    @Test func `finds lost clusters and frees them`() async throws {
        let (device, image) = try await mappedImage()
        let table = Self.l2(device, image)
        device.poke(UInt64(0), at: table)
        #expect(try await image.check().leakCount == 1)
        let report = try await image.check(repair: .leaks)
        #expect(report.fixedLeakCount == 1 && report.leakCount == 0 && report.corruptionCount == 0)
        #expect(try await isSound(device))
    }

    @Test(arguments: [0, 2] as [UInt16])
    func `finds wrong refcounts and repairs them`(value: UInt16) async throws {
        let (device, image) = try await mappedImage()
        let cluster = (device.peek(Self.l2(device, image)) & 0xff_ffff_ffff_fe00) / 512
        device.poke(value, at: Self.refcount(of: cluster, device, image))
        let found = try await image.check()
        #expect(found.corruptionCount > 0 || found.leakCount > 0)
        _ = try await image.check(repair: .all)
        #expect(try await isSound(device))
    }

    @Test func `finds flags that lie and repairs them`() async throws {
        let (device, image) = try await mappedImage()
        let table = Self.l2(device, image)
        device.poke(device.peek(table) ^ 1 << 63, at: table)
        device.poke(device.peek(image.header.l1TableOffset) ^ 1 << 63, at: image.header.l1TableOffset)
        #expect(try await image.check().corruptionCount == 2)
        #expect(try await image.check(repair: .leaks).corruptionCount == 2)
        #expect(try await image.check(repair: .all).fixedCorruptionCount == 2)
        #expect(try await isSound(device))
    }

    @Test func `finds two users of one cluster, and lets the next write separate them`() async throws {
        let (device, image) = try await mappedImage()
        let table = Self.l2(device, image)
        device.poke(device.peek(table), at: table + 8)
        let found = try await image.check()
        #expect(found.corruptionCount == 1 && found.leakCount == 1)
        _ = try await image.check(repair: .all)
        #expect(try await isSound(device))
        #expect(device.peek(table) >> 63 == 0 && device.peek(table + 8) == device.peek(table))
    }

    @Test(arguments: [0xff_0000_0000_0000, 0x201, 0x100_0000_0000_0600] as [UInt64])
    func `tells of entries that lead out of the file, into a cluster or set reserved bits, and leaves them`(entry: UInt64) async throws {
        let (device, image) = try await mappedImage { $0.clusterByteCount = 1024 }
        let table = device.peek(image.header.l1TableOffset) & 0xff_ffff_ffff_fe00
        device.poke(entry, at: table)
        #expect(try await image.check().corruptionCount > 0)
        #expect(try await image.check(repair: .all).corruptionCount > 0)
        #expect(device.peek(table) & ~(1 << 63) == entry)
    }

    @Test func `writes refcount structures anew when they cannot be trusted`() async throws {
        for damage in 0..<4 {
            let (device, image) = try await mappedImage()
            switch damage {
            case 0: device.poke(UInt64(0), at: image.header.refcountTableOffset)
            case 1: device.poke(UInt64(0x201), at: image.header.refcountTableOffset)
            case 2: device.poke(UInt64(1) << 50, at: image.header.refcountTableOffset)
            default: device.poke(image.header.l1TableOffset, at: image.header.refcountTableOffset)
            }
            #expect(try await image.check().corruptionCount > 0)
            _ = try await image.check(repair: .all)
            #expect(try await isSound(device), "damage \(damage)")
        }
    }

    /// Found by the fuzzer: the new refcount table was then read as the L1 table.
    @Test func `a table at the very end of the file lies outside of it`() async throws {
        let (device, image) = try await mappedImage(byteCount: 4096) { $0.preallocation = .off }
        device.poke(device.currentByteCount, at: 40)
        device.poke(UInt64(0), at: image.header.refcountTableOffset)
        let damaged = try await ImageFile.open(device)
        let repaired = try await damaged.check(repair: .all)
        #expect(repaired.errorCount == 1)
    }

    /// Found by the fuzzer: the repair wrote the header, which was the L1 table of a snapshot, too.
    @Test func `repairs nothing where a table overlaps the header`() async throws {
        let (device, image) = try await mappedImage()
        _ = try await image.createSnapshot(Array("s".utf8), time: (1, 1))
        device.poke(UInt64(0), at: try await ImageFile.open(device).header.snapshotTableOffset)
        device.poke(UInt64(0), at: image.header.refcountTableOffset)
        let before = device.bytes
        let report = try await ImageFile.open(device).check(repair: .all)
        #expect(report.findings.contains { $0.hasSuffix("cluster 0 is used by another table, too") })
        #expect(report.errorCount == 1 && report.fixedCorruptionCount == 0 && device.bytes == before)
    }

    @Test func `takes the marks of a bad end from an image that is in order again`() async throws {
        let (device, image) = try await mappedImage()
        var header = image.header
        header.incompatibleFeatures.formUnion([.dirty, .corrupt])
        let bytes = try header.encoded()
        try await device.write(at: 0, from: bytes.rawBytes, [])
        let marked = try await ImageFile.open(device)
        #expect(marked.header.incompatibleFeatures == [.dirty, .corrupt])
        _ = try await marked.check(repair: .all)
        #expect(try await ImageFile.open(device).header.incompatibleFeatures == [])
    }

    @Test func `survives any damage, and repairs what can be`() async throws {
        let seed = UInt64.random(in: 1 ... .max)
        var random = seed
        func next(_ bound: UInt64) -> UInt64 {
            random = random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return (random >> 33) % bound
        }
        for round in 0..<60 {
            let (device, _) = try await mappedImage(byteCount: 16 << 10) { options in
                options.refcountBitCount = [1, 16, 64][round % 3]
            }
            let size = device.currentByteCount
            for _ in 0...next(4) {
                switch next(3) {
                case 0: device.poke(UInt8(next(256)), at: next(size))
                case 1: device.poke(next(1 << 31) << 9 | next(2) << 63, at: next(size / 8) * 8)
                default: try await device.resize(to: max(600, next(size)))
                }
                if device.currentByteCount < size { try await device.resize(to: size) }
            }
            guard let image = try? await ImageFile.open(device) else { continue }
            guard let repaired = try? await image.check(repair: .all), repaired.errorCount == 0 else { continue }
            let after = try await ImageFile.open(device).check()
            #expect(after.leakCount == 0, "seed \(seed), round \(round): \(after.findings)")
            #expect(after.corruptionCount <= repaired.corruptionCount, "seed \(seed), round \(round): \(after.findings)")
        }
    }
}

@Suite struct `Counting references` {
    @Test func `keeps large numbers, and its bounds`() async throws {
        // One byte each would end at 255: 300 L1 entries name the same table.
        let (device, image) = try await mappedImage(byteCount: 300 * 32 << 10) { $0.preallocation = .off }
        let place = UInt64(2000 * 512)
        try await device.write(at: place, from: [UInt8](repeating: 0, count: 512).rawBytes, [])
        for index in 0..<300 as Range<UInt64> { device.poke(place, at: image.header.l1TableOffset + index * 8) }
        _ = try await image.check(repair: .all)
        #expect(try await isSound(device))
    }
}
