import NBDProtocol

/// What `nbd info` and `nbd list` tell, in the words, the keys and the order of nbdinfo, so that scripts for one understand the other.
struct InfoReport: Equatable {
    struct Export: Equatable {
        var info: ExportInfo
        var uri: String
        /// nil: the server was not asked, as it could not answer.
        var contexts: [String]?
    }

    var style: HandshakeStyle
    var mode: ReplyMode
    var exports: [Export]
    var isEncrypted = false

    /// What can be asked for with `--can` and `--is`; nil: no such ability.
    static func ability(_ name: String, _ info: ExportInfo, _ mode: ReplyMode, isEncrypted: Bool = false) -> Bool? {
        switch name {
        case "connect", "read": true
        case "tls": isEncrypted
        case "structured-reply": mode != .simple
        case "extended-headers": mode == .extended
        case "read-only", "readonly": info.flags.contains(.readOnly)
        case "write": !info.flags.contains(.readOnly)
        case "rotational": info.flags.contains(.rotational)
        case "cache": info.flags.contains(.cache)
        case "df": info.flags.contains(.df)
        case "fast-zero": info.flags.contains(.fastZero)
        case "flush": info.flags.contains(.flush)
        case "fua": info.flags.contains(.fua)
        case "multi-conn": info.flags.contains(.multiConn)
        case "trim": info.flags.contains(.trim)
        case "zero": info.flags.contains(.writeZeroes)
        default: nil
        }
    }

    private static let shown = [
        ("is_rotational", "rotational"), ("is_read_only", "read-only"), ("can_cache", "cache"), ("can_df", "df"),
        ("can_fast_zero", "fast-zero"),
        ("can_flush", "flush"), ("can_fua", "fua"), ("can_multi_conn", "multi-conn"), ("can_trim", "trim"), ("can_zero", "zero"),
    ]

    /// For people. Text of the server is made fit to be shown.
    var text: String {
        let packets =
            switch mode {
            case .simple: "simple"
            case .structured: "structured"
            case .extended: "extended"
            }
        var lines = ["protocol: \(style.rawValue) \(isEncrypted ? "with" : "without") TLS, using \(packets) packets"]
        for export in exports {
            let info = export.info
            lines.append("export=\"\(info.name.sanitized(limit: stringByteCountLimit))\":")
            if let text = info.text, !text.isEmpty { lines.append("\tdescription: \(text.sanitized(limit: stringByteCountLimit))") }
            let human = Self.humanSize(info.byteCount)
            lines.append("\texport-size: \(info.byteCount)" + (human == "\(info.byteCount)" ? "" : " (\(human))"))
            lines.append("\turi: \(export.uri)")
            if let contexts = export.contexts, !contexts.isEmpty {
                lines.append("\tcontexts:")
                lines += contexts.map { "\t\t\($0.sanitized(limit: stringByteCountLimit))" }
            }
            for (key, name) in Self.shown { lines.append("\t\(key): \(Self.ability(name, info, mode) ?? false)") }
            if let sizes = info.blockSizes {
                lines.append("\tblock_size_minimum: \(sizes.minimum)")
                lines.append("\tblock_size_preferred: \(sizes.preferred)")
                lines.append("\tblock_size_maximum: \(sizes.maximumPayload)")
            }
        }
        return lines.joined(separator: "\n")
    }

    /// For programs.
    var json: JSON {
        .object([
            ("protocol", .string(style.rawValue)), ("TLS", .bool(isEncrypted)), ("structured", .bool(mode != .simple)),
            ("extended", .bool(mode == .extended)), ("exports", .array(exports.map(json))),
        ])
    }

    private func json(_ export: Export) -> JSON {
        let info = export.info
        var members: [(key: String, value: JSON)] = [("export-name", .string(info.name))]
        if let text = info.text, !text.isEmpty { members.append(("description", .string(text))) }
        members.append(("uri", .string(export.uri)))
        if let contexts = export.contexts, !contexts.isEmpty { members.append(("contexts", .array(contexts.map(JSON.string)))) }
        for (key, name) in Self.shown { members.append((key, .bool(Self.ability(name, info, mode) ?? false))) }
        if let sizes = info.blockSizes {
            members.append(("block_size_minimum", .integer(UInt64(sizes.minimum))))
            members.append(("block_size_preferred", .integer(UInt64(sizes.preferred))))
            members.append(("block_size_maximum", .integer(UInt64(sizes.maximumPayload))))
        }
        members.append(("export-size", .integer(info.byteCount)))
        members.append(("export-size-str", .string(Self.humanSize(info.byteCount))))
        return .object(members)
    }

    /// The size in the largest unit that divides it: `10M`, but `1536K` and `1025`.
    static func humanSize(_ byteCount: UInt64) -> String {
        var value = byteCount
        for unit in ["", "K", "M", "G", "T", "P"] {
            guard value > 0, value.isMultiple(of: 1024) else { return "\(value)\(unit)" }
            value /= 1024
        }
        return "\(value)E"
    }
}
