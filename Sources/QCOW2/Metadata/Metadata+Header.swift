internal import Block
internal import Synchronization

// Single fields of the header, each written in one piece: a power cut leaves the old value or the new one.
extension Metadata {
    func writeIncompatibleFeatures(_ features: IncompatibleFeatures) async throws(BlockError) {
        try await file.store([UInt8](bigEndianWords: [features.rawValue], count: 1), at: 72)
    }

    /// Where the refcount table is, and how long.
    func writeRefcountTableField(_ offset: UInt64, _ clusterCount: UInt32) async throws(BlockError) {
        let words = [offset, UInt64(clusterCount) << 32]
        try await file.store(Array([UInt8](bigEndianWords: words, count: 2).prefix(12)), at: 48)
    }

    /// Takes back promises about the image that we cannot keep when we write to it.
    func clearAutoclearFeatures(keeping known: AutoclearFeatures) async throws(BlockError) {
        let features = state.withLock { state -> AutoclearFeatures? in
            let kept = state.header.autoclearFeatures.intersection(known)
            guard state.header.version >= 3, kept != state.header.autoclearFeatures else { return nil }
            state.header.autoclearFeatures = kept
            return kept
        }
        guard let features else { return }
        try await file.store([UInt8](bigEndianWords: [features.rawValue], count: 1), at: 88)
        try await file.flush()
    }

    /// Changes the bitmaps extension where it stands.
    func writeBitmapsExtension(_ new: BitmapsExtension) async throws(BlockError) {
        let front = try await file.bytes(at: 0, count: geometry.clusterByteCount)
        var position = Int(front.rawBytes.bigEndian(UInt32.self, at: 4) == 2 ? 72 : front.rawBytes.bigEndian(UInt32.self, at: 100))
        while position <= front.count - 8 - BitmapsExtension.byteCount {
            let type: UInt32 = front.rawBytes.bigEndian(at: position)
            let count: UInt32 = front.rawBytes.bigEndian(at: position + 4)
            if type == HeaderExtension.bitmapsType {
                try await file.store(new.encoded, at: UInt64(position) + 8)
                state.withLock { state in
                    for index in state.header.extensions.indices where state.header.extensions[index].type == type {
                        state.header.extensions[index] = .bitmaps(new)
                    }
                }
                return
            }
            guard type != HeaderExtension.endType, count < UInt32(front.count) else { break }
            position += 8 + (Int(count) + 7) & ~7
        }
        throw BlockError(.inputOutput, "the image is damaged: its header has changed while it was open")
    }

    /// Says in the image that its refcounts may lag behind, before they do. For images that ask for lazy refcounts.
    func markDirty() async throws(BlockError) {
        let features = state.withLock { state -> IncompatibleFeatures? in
            guard state.header.version >= 3, state.header.compatibleFeatures.contains(.lazyRefcounts),
                !state.header.incompatibleFeatures.contains(.dirty)
            else { return nil }
            state.header.incompatibleFeatures.insert(.dirty)
            return state.header.incompatibleFeatures
        }
        guard let features else { return }
        try await writeIncompatibleFeatures(features)
        try await file.flush()
    }

    /// The refcounts in the image are right: everything has been written and flushed.
    func markClean() async throws(BlockError) {
        let features = state.withLock { state -> IncompatibleFeatures? in
            guard state.header.incompatibleFeatures.contains(.dirty) else { return nil }
            state.header.incompatibleFeatures.remove(.dirty)
            return state.header.incompatibleFeatures
        }
        guard let features else { return }
        try await writeIncompatibleFeatures(features)
        try await file.flush()
    }
}
