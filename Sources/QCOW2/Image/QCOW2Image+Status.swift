public import Block
internal import Synchronization

extension QCOW2Image {
    /// As qemu-nbd tells it (S-BST-07): data clusters are data, zero and unallocated ones holes that read as zeroes, and where the image has
    /// nothing the file below is asked.
    public func status(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        let pin = metadata.quarantine.pin()
        defer { metadata.quarantine.unpin(pin) }
        var rest = range
        for _ in 0..<Self.statusStepLimit where !rest.isEmpty {
            let run = try await run(at: rest.start, limit: rest.count)
            let part = rest.prefix(run.byteCount)
            let hasRoom: Bool
            switch run.kind {
            case .zero: hasRoom = extents.append(part.count, [.hole, .zero])
            case .compressed, .damaged: hasRoom = extents.append(part.count, .data)
            case .data(let host): hasRoom = try await appendData(host, part.count, into: &extents)
            case .unallocated: hasRoom = try await appendBelow(part, into: &extents)
            }
            guard hasRoom else { return }
            rest = rest.dropFirst(part.count)
        }
    }

    /// S-BST-08. A file below that is shorter than the image counts as allocated behind its end, as QEMU has it.
    public func allocationDepth(of range: ByteRange, into extents: inout ExtentList) async throws(BlockError) {
        var rest = range
        for _ in 0..<Self.statusStepLimit where !rest.isEmpty {
            let run = try await run(at: rest.start, limit: rest.count)
            let part = rest.prefix(run.byteCount)
            var hasRoom = true
            if run.kind != .unallocated {
                hasRoom = extents.append(part.count, ExtentStatus(rawValue: 1))
            } else if let backing {
                let inside = part.clamped(to: ByteRange(ofDevice: backingByteCount))
                var below = inside
                while hasRoom, !below.isEmpty {
                    var list = ExtentList(byteCountLimit: below.count, extentCountLimit: extents.extentCountLimit)
                    try await backing.allocationDepth(of: below, into: &list)
                    guard list.byteCount > 0 else { return }
                    for extent in list.extents where hasRoom {
                        let depth = extent.status.rawValue
                        hasRoom = extents.append(extent.count, ExtentStatus(rawValue: depth == 0 ? 0 : depth &+ 1))
                    }
                    below = below.dropFirst(list.byteCount)
                }
                if hasRoom { hasRoom = extents.append(part.count - inside.count, ExtentStatus(rawValue: 2)) }
            } else {
                hasRoom = extents.append(part.count, ExtentStatus(rawValue: 0))
            }
            guard hasRoom else { return }
            rest = rest.dropFirst(part.count)
        }
    }

    /// Returns false when the list is full.
    private func appendBelow(_ part: ByteRange, into extents: inout ExtentList) async throws(BlockError) -> Bool {
        var hasRoom = true
        let inside = part.clamped(to: ByteRange(ofDevice: backingByteCount))
        var below = inside
        while let backing, hasRoom, !below.isEmpty {
            var list = ExtentList(byteCountLimit: below.count, extentCountLimit: extents.extentCountLimit)
            try await backing.status(of: below, into: &list)
            guard list.byteCount > 0 else {
                hasRoom = extents.append(below.count, .data)
                break
            }
            for extent in list.extents where hasRoom { hasRoom = extents.append(extent.count, extent.status) }
            below = below.dropFirst(list.byteCount)
        }
        return hasRoom && extents.append(part.count - inside.count, [.hole, .zero])
    }

    /// Data; where the image was preallocated without its data, what the file has no room for reads as zeroes.
    private func appendData(_ host: UInt64, _ byteCount: UInt64, into extents: inout ExtentList) async throws(BlockError) -> Bool {
        guard try await isPreallocated(), let range = ByteRange(start: host, count: byteCount, within: data.currentByteCount) else {
            return extents.append(byteCount, .data)
        }
        var rest = range
        var hasRoom = true
        while hasRoom, !rest.isEmpty {
            var list = ExtentList(byteCountLimit: rest.count, extentCountLimit: extents.extentCountLimit)
            try await data.status(of: rest, into: &list)
            guard list.byteCount > 0 else { return extents.append(rest.count, .data) }
            for extent in list.extents where hasRoom { hasRoom = extents.append(extent.count, extent.status.subtracting(.hole)) }
            rest = rest.dropFirst(list.byteCount)
        }
        return hasRoom
    }

    /// Whether the file has much less room taken than its refcounts say: then clusters have a place and no data (`preallocation=metadata`).
    /// Asked once. The measure is QEMU's.
    private func isPreallocated() async throws(BlockError) -> Bool {
        switch preallocation.load(ordering: .relaxed) {
        case 1: return false
        case 2: return true
        default: break
        }
        let isSo = try await findPreallocation()
        preallocation.store(isSo ? 2 : 1, ordering: .relaxed)
        return isSo
    }

    private func findPreallocation() async throws(BlockError) -> Bool {
        guard !hasDataFile, metadata.file.info.abilities.status == .native else { return false }
        let file = ByteRange(ofDevice: metadata.file.currentByteCount)
        var taken: UInt64 = 0
        var rest = file
        while !rest.isEmpty {
            var list = ExtentList(byteCountLimit: rest.count)
            try await metadata.file.status(of: rest, into: &list)
            guard list.byteCount > 0 else { return false }
            for extent in list.extents where !extent.status.contains(.hole) { taken += extent.count }
            rest = rest.dropFirst(list.byteCount)
        }
        let clusters = taken >> UInt64(geometry.clusterBits)
        let threshold = max(clusters * 10 / 9, clusters + 2)
        return try await metadata.usedClusterCount(upTo: threshold) >= threshold
    }

    /// Runs of one answer: it may end early.
    private static let statusStepLimit = 65536
}
