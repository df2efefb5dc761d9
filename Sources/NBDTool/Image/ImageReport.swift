import NBDProtocol
import QCOW2

/// What `nbd image info` tells of one image, in the words of qemu-img.
struct ImageReport {
    var path: String
    var byteCount: UInt64
    var allocatedByteCount: UInt64?
    /// Nil for raw.
    var header: ImageHeader?
    var snapshots: [SnapshotEntry] = []
    var bitmaps: [BitmapDirectoryEntry] = []
    var luks: LUKSHeader?
    /// The path of the backing file, if there is one that is a file.
    var backingPath: String?

    init(_ opened: OpenedImage) async throws(ToolError) {
        path = opened.path
        byteCount = opened.byteCount
        allocatedByteCount = ImagePath.allocatedByteCount(of: opened.path)
        guard let image = opened.image else { return }
        header = image.header
        (snapshots, bitmaps, luks) = try await withImageErrors(path) { () throws(ImageError) in
            do throws(FormatError) { try image.header.requireReadable() } catch  where image.header.encryption == .none {
                throw .format(error)
            } catch {}
            return (try await image.snapshots(), try await image.bitmaps(), try await image.luksHeader())
        }
        if let name = image.header.backingFileName {
            backingPath = try? ImagePath.resolve(String(decoding: name, as: UTF8.self), from: path)
        }
    }

    var backing: (path: String, format: ImageFormat?)? {
        guard let backingPath else { return nil }
        return (backingPath, header?.backingFormat.flatMap { ImageFormat(rawValue: String(decoding: $0, as: UTF8.self)) })
    }
}

// MARK: JSON

extension ImageReport {
    var json: JSON {
        var fields: [(key: String, value: JSON)] = []
        if !snapshots.isEmpty { fields.append(("snapshots", .array(snapshots.map(Self.json)))) }
        if let format = header?.backingFormat { fields.append(("backing-filename-format", Self.string(format))) }
        fields += [("virtual-size", .integer(byteCount)), ("filename", .string(path))]
        if let header { fields.append(("cluster-size", .integer(UInt64(header.clusterByteCount)))) }
        fields.append(("format", .string(header == nil ? "raw" : "qcow2")))
        if let allocatedByteCount { fields.append(("actual-size", .integer(allocatedByteCount))) }
        if let header {
            if header.encryption != .none { fields.append(("encrypted", .bool(true))) }
            fields.append(("format-specific", .object([("type", .string("qcow2")), ("data", .object(specific(header)))])))
        }
        if let name = header?.backingFileName {
            if let backingPath { fields.append(("full-backing-filename", .string(backingPath))) }
            fields.append(("backing-filename", Self.string(name)))
        }
        fields.append(("dirty-flag", .bool(header?.incompatibleFeatures.contains(.dirty) ?? false)))
        return .object(fields)
    }

    private func specific(_ header: ImageHeader) -> [(key: String, value: JSON)] {
        var fields: [(key: String, value: JSON)] = [
            ("compat", .string(header.version == 2 ? "0.10" : "1.1")), ("compression-type", .string(header.compression.name)),
        ]
        if header.version == 3 { fields.append(("lazy-refcounts", .bool(header.compatibleFeatures.contains(.lazyRefcounts)))) }
        if !bitmaps.isEmpty { fields.append(("bitmaps", .array(bitmaps.map(Self.json)))) }
        fields.append(("refcount-bits", .integer(UInt64(header.geometry.refcountWidth.bitCount))))
        if header.hasDataFile {
            if let name = header.dataFileName { fields.append(("data-file", Self.string(name))) }
            fields.append(("data-file-raw", .bool(header.hasRawDataFile)))
        }
        if let encryption = encryption(header) { fields.append(("encrypt", encryption)) }
        if header.version == 3 {
            fields.append(("corrupt", .bool(header.incompatibleFeatures.contains(.corrupt))))
            fields.append(("extended-l2", .bool(header.geometry.hasExtendedL2)))
        }
        return fields
    }

    private func encryption(_ header: ImageHeader) -> JSON? {
        switch header.encryption {
        case .none: return nil
        case .aes: return .object([("format", .string("aes"))])
        case .luks: break
        }
        guard let luks else { return .object([("format", .string("luks"))]) }
        var fields: [(key: String, value: JSON)] = [
            ("ivgen-alg", .string(luks.vectorAlgorithm)), ("hash-alg", .string(luks.hash)),
            ("cipher-alg", .string("\(luks.cipherName)-\(luks.cipherBitCount)")), ("uuid", .string(luks.uuid)),
        ]
        if let hash = luks.vectorHash { fields.append(("ivgen-hash-alg", .string(hash))) }
        let slots = luks.slots.map { slot in
            let place = ("key-offset", JSON.integer(slot.offset))
            guard slot.isActive else { return JSON.object([("active", .bool(false)), place]) }
            return .object([
                ("active", .bool(true)), ("iters", .integer(UInt64(slot.iterationCount))), place,
                ("stripes", .integer(UInt64(slot.stripeCount))),
            ])
        }
        return .object(
            fields + [
                ("format", .string("luks")), ("cipher-mode", .string(luks.cipherMode)), ("slots", .array(slots)),
                ("payload-offset", .integer(luks.payloadOffset)), ("master-key-iters", .integer(UInt64(luks.masterKeyIterationCount))),
            ])
    }

    static func json(_ snapshot: SnapshotEntry) -> JSON {
        var fields: [(key: String, value: JSON)] = []
        if let count = snapshot.instructionCount, count != .max { fields.append(("icount", .integer(count))) }
        return .object(
            fields + [
                ("vm-clock-nsec", .integer(snapshot.guestNanoseconds % 1_000_000_000)), ("name", string(snapshot.name)),
                ("date-sec", .integer(UInt64(snapshot.seconds))), ("date-nsec", .integer(UInt64(snapshot.nanoseconds))),
                ("vm-clock-sec", .integer(snapshot.guestNanoseconds / 1_000_000_000)), ("id", string(snapshot.id)),
                ("vm-state-size", .integer(snapshot.stateByteCount)),
            ])
    }

    static func json(_ bitmap: BitmapDirectoryEntry) -> JSON {
        .object([
            ("flags", .array(names(bitmap.flags).map(JSON.string))), ("name", string(bitmap.name)),
            ("granularity", .integer(1 << UInt64(bitmap.granularityBits))),
        ])
    }

    private static func names(_ flags: BitmapDirectoryEntry.Flags) -> [String] {
        (flags.contains(.inUse) ? ["in-use"] : []) + (flags.contains(.auto) ? ["auto"] : [])
    }

    private static func string(_ bytes: [UInt8]) -> JSON { .string(String(decoding: bytes, as: UTF8.self)) }
}

// MARK: Text

extension ImageReport {
    var text: String {
        var lines = [
            "image: \(path)", "file format: \(header == nil ? "raw" : "qcow2")",
            "virtual size: \(Self.size(byteCount)) (\(byteCount) bytes)",
            "disk size: \(allocatedByteCount.map(Self.size) ?? "unavailable")",
        ]
        guard let header else { return lines.joined(separator: "\n") }
        if header.encryption != .none { lines.append("encrypted: yes") }
        lines.append("cluster_size: \(header.clusterByteCount)")
        if header.incompatibleFeatures.contains(.dirty) { lines.append("cleanly shut down: no") }
        if let name = header.backingFileName {
            let text = Self.text(name)
            lines.append(
                "backing file: \(text)" + (backingPath.map { $0 == text ? "" : " (actual path: \($0))" } ?? " (cannot be resolved)"))
        }
        if let format = header.backingFormat { lines.append("backing file format: \(Self.text(format))") }
        if !snapshots.isEmpty { lines += ["Snapshot list:"] + Self.table(snapshots) }
        lines.append("Format specific information:")
        lines += Self.lines(specific(header), indent: "    ")
        return lines.joined(separator: "\n")
    }

    private static func lines(_ fields: [(key: String, value: JSON)], indent: String) -> [String] {
        fields.flatMap { key, value in lines(key.split(separator: "-").joined(separator: " "), value, indent: indent) }
    }

    private static func lines(_ name: String, _ value: JSON, indent: String) -> [String] {
        switch value {
        case .object(let fields): ["\(indent)\(name):"] + lines(fields, indent: indent + "    ")
        case .array(let items):
            ["\(indent)\(name):"] + items.enumerated().flatMap { lines("[\($0)]", $1, indent: indent + "    ") }
        case .string(let text): ["\(indent)\(name): \(text.sanitized(limit: 1024))"]
        default: ["\(indent)\(name): \(value.text)"]
        }
    }

    /// The lines of a table of snapshots, with its head.
    static func table(_ snapshots: [SnapshotEntry]) -> [String] {
        [row("ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT")]
            + snapshots.map { snapshot in
                let clock = snapshot.guestNanoseconds / 1_000_000
                let (hours, minutes, seconds) = (clock / 3_600_000, clock / 60_000 % 60, clock / 1000 % 60)
                return row(
                    text(snapshot.id), text(snapshot.name), size(snapshot.stateByteCount),
                    CalendarTime.text(ofEpochSeconds: snapshot.seconds),
                    "\(padded(hours, 2)):\(padded(minutes, 2)):\(padded(seconds, 2)).\(padded(clock % 1000, 3))",
                    snapshot.instructionCount.map { $0 == .max ? "" : "\($0)" } ?? "")
            }
    }

    private static func row(_ id: String, _ tag: String, _ size: String, _ date: String, _ clock: String, _ count: String) -> String {
        func left(_ text: String, _ width: Int) -> String { text + String(repeating: " ", count: max(0, width - text.count)) }
        func right(_ text: String, _ width: Int) -> String { String(repeating: " ", count: max(0, width - text.count)) + text }
        return left(id, 10) + left(tag, 17) + right(size, 8) + right(date, 20) + right(clock, 13) + right(count, 11)
    }

    private static func padded(_ value: UInt64, _ width: Int) -> String {
        let digits = String(value)
        return String(repeating: "0", count: max(0, width - digits.count)) + digits
    }

    private static func text(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self).sanitized(limit: 1024) }

    /// Three significant digits and a unit: `1.5 GiB`.
    static func size(_ byteCount: UInt64) -> String {
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
        var value = Double(byteCount)
        var unit = 0
        while value >= 999.5, unit < units.count - 1 {
            value /= 1024
            unit += 1
        }
        let decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0
        let scale = decimals == 2 ? 100.0 : decimals == 1 ? 10 : 1
        let scaled = UInt64((value * scale).rounded(.toNearestOrEven))
        var text = String(scaled / UInt64(scale))
        let rest = scaled % UInt64(scale)
        if rest > 0 {
            var digits = padded(rest, decimals)
            while digits.hasSuffix("0") { digits.removeLast() }
            text += "." + digits
        }
        return "\(text) \(units[unit])"
    }
}
