public import Block
import NBDProtocol

/// A disk as clients see it: a device under a name.
public struct Export: Sendable {
    /// What clients ask for; at most 4096 bytes of UTF-8 without NUL. May be empty.
    public var name: String
    /// Text for people, shown by LIST; may be empty. The same rule.
    public var description: String
    public var device: any BlockDevice
    /// Refuses every kind of write. A device that cannot be written is exported read-only in any case.
    public var isReadOnly: Bool

    public init(name: String, description: String = "", device: any BlockDevice, isReadOnly: Bool = false) {
        self.name = name
        self.description = description
        self.device = device
        self.isReadOnly = isReadOnly
    }
}

/// An export in service: the device ready for requests of any alignment, and what the handshake tells of it.
struct ServedExport: Sendable {
    private(set) var description: ExportDescription
    let device: any BlockDevice

    /// - Parameter id: identity, never used twice.
    /// - Parameter allowsSeveralClients: false on a server for one client, where CAN_MULTI_CONN would be a lie (S-EXP-09).
    init(_ export: Export, id: UInt64, allowsSeveralClients: Bool) throws(ServerError) {
        for (what, text) in [("name", export.name), ("description", export.description)]
        where String(protocolBytes: Array(text.utf8)) == nil {
            throw ServerError(
                .invalidExport, "export \(what) '\(text.sanitized())' is longer than \(stringByteCountLimit) bytes or contains NUL")
        }
        let info = export.device.info
        guard info.byteCount <= UInt64(Int64.max) else {
            throw ServerError(.invalidExport, "export '\(export.name.sanitized())' is larger than 2^63-1 bytes")
        }
        let isReadOnly = export.isReadOnly || info.isReadOnly
        var flags: TransmissionFlags = .hasFlags
        if info.abilities.flush != .none { flags.insert(.flush) }
        if info.abilities.durableWrites != .none { flags.insert(.fua) }
        if info.abilities.prefetch != .none { flags.insert(.cache) }
        if info.isRotational { flags.insert(.rotational) }
        if info.isCoherent, allowsSeveralClients { flags.insert(.multiConn) }
        if isReadOnly {
            flags.insert(.readOnly)
        } else {
            if info.abilities.discard != .none { flags.insert(.trim) }
            // FAST_ZERO says that the flag is understood, not that zeroes are fast (P-FLG-05).
            if info.abilities.zeroes != .none { flags.formUnion([.writeZeroes, .fastZero]) }
        }
        device = Emulation(export.device)
        let sizes = info.blockSize
        // libnbd throws all three sizes away unless the maximum is a multiple of the minimum (S-INFO-13).
        let maximum = min(sizes.maximum, payloadByteCountLimit) / sizes.minimum * sizes.minimum
        description = ExportDescription(
            id: id, name: export.name, text: export.description, byteCount: device.info.byteCount, flags: flags,
            blockSizes: BlockSizes(
                minimum: sizes.minimum, preferred: sizes.preferred, maximumPayload: max(maximum, sizes.preferred)))
    }

    /// As a client with these permissions sees it: from here on they are the export's own flags and contexts, and nobody asks again.
    func restricted(to permissions: Permissions) -> ServedExport {
        guard permissions != .all else { return self }
        var export = self
        let isReadOnly = !permissions.contains(.write)
        if isReadOnly { export.description.flags.insert(.readOnly) }
        if isReadOnly || !permissions.contains(.trim) {
            export.description.flags.subtract([.trim, .writeZeroes, .fastZero])
            export.description.isZeroingForbidden = true
        }
        if !permissions.contains(.contexts) { export.description.contexts = [] }
        return export
    }
}
