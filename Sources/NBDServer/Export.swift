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
    /// Metadata contexts that clients may select besides `base:allocation`, in the order of replies (S-META-20); at most 1024.
    public var contexts: [ExportContext]
    /// Only for encrypted connections: in clear, there is no such export (P-TLS-08).
    public var requiresTLS = false

    public init(
        name: String, description: String = "", device: any BlockDevice, isReadOnly: Bool = false, contexts: [ExportContext] = []
    ) {
        self.name = name
        self.description = description
        self.device = device
        self.isReadOnly = isReadOnly
        self.contexts = contexts
    }
}

/// A metadata context of an export, and who knows what it tells.
public struct ExportContext: Sendable {
    /// `namespace:leaf`: `qemu:allocation-depth`, `qemu:dirty-bitmap:NAME`.
    public var name: String
    /// Asked for any range inside the device.
    public var source: any ExtentSource

    public init(name: String, source: any ExtentSource) {
        self.name = name
        self.source = source
    }

    /// `qemu:allocation-depth` (S-META-15).
    public static func allocationDepth(of device: any BlockDevice) -> ExportContext {
        ExportContext(name: "qemu:allocation-depth", source: AllocationDepth(device))
    }

    /// `qemu:dirty-bitmap:NAME` (S-META-17).
    public static func dirtyBitmap(_ name: String, _ source: any ExtentSource) -> ExportContext {
        ExportContext(name: "qemu:dirty-bitmap:" + name, source: source)
    }
}

/// An export in service: the device ready for requests of any alignment, and what the handshake tells of it.
struct ServedExport: Sendable {
    private(set) var description: ExportDescription
    let device: any BlockDevice
    /// Of the export's own contexts, by their ids.
    let sources: [UInt32: any ExtentSource]
    /// Pauses the clients.
    let gate: ExportGate

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
        let contexts = try Self.contexts(of: export)
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
        gate = ExportGate(device)
        sources = Dictionary(uniqueKeysWithValues: zip(contexts.dropFirst().map(\.id), export.contexts.map(\.source)))
        let sizes = info.blockSize
        // libnbd throws all three sizes away unless the maximum is a multiple of the minimum (S-INFO-13).
        let maximum = min(sizes.maximum, payloadByteCountLimit) / sizes.minimum * sizes.minimum
        description = ExportDescription(
            id: id, name: export.name, text: export.description, byteCount: device.info.byteCount, flags: flags,
            blockSizes: BlockSizes(
                minimum: sizes.minimum, preferred: sizes.preferred, maximumPayload: max(maximum, sizes.preferred)),
            contexts: contexts, requiresTLS: export.requiresTLS)
    }

    /// `base:allocation` first, then the export's own, with ids in order (S-META-20, S-META-21).
    private static func contexts(of export: Export) throws(ServerError) -> [MetaContext] {
        guard export.contexts.count <= 1024 else {
            throw ServerError(.invalidExport, "export '\(export.name.sanitized())' has \(export.contexts.count) metadata contexts; at most 1024")
        }
        var contexts = [MetaContext.baseAllocation]
        var names: Set = [MetaContext.baseAllocation.name]
        for (index, context) in export.contexts.enumerated() {
            guard String(protocolBytes: Array(context.name.utf8)) != nil, context.name.utf8.contains(UInt8(ascii: ":")) else {
                throw ServerError(
                    .invalidExport,
                    "metadata context '\(context.name.sanitized())' is not namespace:leaf, longer than \(stringByteCountLimit) bytes or contains NUL")
            }
            guard names.insert(context.name).inserted else {
                throw ServerError(.invalidExport, "metadata context '\(context.name.sanitized())' is given twice")
            }
            contexts.append(MetaContext(id: UInt32(index + 1), name: context.name))
        }
        return contexts
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
