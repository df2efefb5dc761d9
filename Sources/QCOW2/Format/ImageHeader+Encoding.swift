extension ImageHeader {
    /// The first cluster of the image: header, extensions, name of the backing file, zeroes.
    ///
    /// - Throws: `.unsupported` when they do not fit in a cluster, or when version 2 cannot say what this header says.
    public func encoded() throws(FormatError) -> [UInt8] {
        if version == 2 { try requireVersion2() }
        let headerByteCount = version == 2 ? Self.version2ByteCount : 112 + unknownFields.count
        var sections = ByteBuilder()
        for section in extensions { section.append(to: &sections) }
        sections.append(UInt64(0))
        let nameOffset = headerByteCount + sections.bytes.count
        guard nameOffset + (backingFileName?.count ?? 0) <= clusterByteCount else {
            throw .unsupported(
                "the header, its extensions and the name of the backing file do not fit in a cluster of \(clusterByteCount) bytes")
        }
        var out = ByteBuilder()
        out.append(Self.magic)
        out.append(version)
        out.append(UInt64(backingFileName == nil ? 0 : nameOffset))
        out.append(UInt32(backingFileName?.count ?? 0))
        out.append(UInt32(geometry.clusterBits))
        out.append(virtualByteCount)
        out.append(encryption.rawValue)
        out.append(l1EntryCount)
        out.append(l1TableOffset)
        out.append(refcountTableOffset)
        out.append(refcountTableClusterCount)
        out.append(snapshotCount)
        out.append(snapshotTableOffset)
        if version == 3 {
            out.append(incompatibleFeatures.rawValue)
            out.append(compatibleFeatures.rawValue)
            out.append(autoclearFeatures.rawValue)
            out.append(UInt32(geometry.refcountOrder))
            out.append(UInt32(headerByteCount))
            out.append(compression.rawValue)
            out.pad(toMultipleOf: 8)
            out.append(contentsOf: unknownFields)
        }
        out.append(contentsOf: sections.bytes)
        out.append(contentsOf: backingFileName ?? [])
        out.pad(to: clusterByteCount)
        return out.bytes
    }

    private func requireVersion2() throws(FormatError) {
        guard geometry.refcountOrder == 4, incompatibleFeatures.isEmpty, compatibleFeatures.isEmpty, autoclearFeatures.isEmpty,
            compression == .zlib
        else { throw .unsupported("version 2 of the format has refcounts of 16 bits and none of the features of version 3") }
    }
}
