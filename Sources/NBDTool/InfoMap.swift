import NBDClient
import NBDProtocol

/// Which parts of an export have which status: `nbd info --map`.
struct InfoMap: Equatable {
    struct Entry: Equatable {
        var offset: UInt64
        var byteCount: UInt64
        var status: UInt64
    }

    /// Ascending, without gaps; neighbours differ.
    private(set) var entries: [Entry] = []
    let context: String

    init(_ context: String) { self.context = context }

    /// Asks for the whole export. Memory grows with the number of extents that differ.
    static func fetch(_ uri: NBDURI, _ options: NBDClient.Options, context: String) async throws -> InfoMap {
        var options = options
        options.contexts = [context]
        let client = try await NBDClient.connect(uri, options: options)
        guard let session = try await client.session, let selected = session.contexts.first else {
            await client.close()
            throw InfoFailure("the server does not support metadata context '\(context.sanitized())'")
        }
        var map = InfoMap(selected.name)
        var offset: UInt64 = 0
        // Compact requests hold 32 bits; a multiple of every block size stays aligned.
        let stride: UInt64 = session.mode == .extended ? 1 << 40 : 2 << 30
        while offset < session.info.byteCount {
            let left = session.info.byteCount - offset
            let extents = try await client.blockStatus(at: offset, count: min(stride, left))[selected.name] ?? []
            // At least one extent of at least one byte: the decoder has seen to it.
            for extent in extents where offset < session.info.byteCount {
                let byteCount = min(extent.byteCount, session.info.byteCount - offset)
                map.append(byteCount, extent.flags)
                offset += byteCount
            }
        }
        try? await client.disconnect()
        return map
    }

    mutating func append(_ byteCount: UInt64, _ status: UInt64) {
        guard let last = entries.last else {
            entries.append(Entry(offset: 0, byteCount: byteCount, status: status))
            return
        }
        if last.status == status {
            entries[entries.count - 1].byteCount += byteCount
        } else {
            entries.append(Entry(offset: last.offset + last.byteCount, byteCount: byteCount, status: status))
        }
    }

    /// Bytes by status, in order of status.
    var totals: [(status: UInt64, byteCount: UInt64)] {
        var sums: [UInt64: UInt64] = [:]
        for entry in entries { sums[entry.status, default: 0] += entry.byteCount }
        return sums.sorted { $0.key < $1.key }.map { (status: $0.key, byteCount: $0.value) }
    }

    private var byteCount: UInt64 { entries.last.map { $0.offset + $0.byteCount } ?? 0 }

    /// The context's own words for a status; nil: it has none.
    func describe(_ status: UInt64) -> String? {
        if context == "base:allocation" {
            switch status {
            case 0: return "data"
            case 1: return "hole"
            case 2: return "zero"
            case 3: return "hole,zero"
            default: return nil
            }
        }
        if context.hasPrefix("qemu:dirty-bitmap:") { return status == 0 ? "clean" : status == 1 ? "dirty" : nil }
        if context == "qemu:allocation-depth" { return status == 0 ? "unallocated" : status == 1 ? "local" : "backing depth \(status)" }
        return nil
    }

    func text(totals showsTotals: Bool) -> String {
        func right(_ text: String, _ width: Int) -> String { String(repeating: " ", count: max(0, width - text.utf8.count)) + text }
        let lines =
            if showsTotals {
                totals.map { status, count in
                    let perMille = (Double(count) / Double(max(byteCount, 1)) * 1000).rounded()
                    let percent = "\(UInt64(perMille) / 10).\(UInt64(perMille) % 10)"
                    return right("\(count)", 10) + " " + right(percent, 5) + "% " + right("\(status)", 3)
                        + (describe(status).map { " \($0)" } ?? "")
                }
            } else {
                entries.map { entry in
                    right("\(entry.offset)", 10) + "  " + right("\(entry.byteCount)", 10) + "  " + right("\(entry.status)", 3)
                        + (describe(entry.status).map { "  \($0)" } ?? "")
                }
            }
        return lines.joined(separator: "\n")
    }

    func json(totals showsTotals: Bool) -> JSON {
        func described(_ members: [(key: String, value: JSON)], _ status: UInt64) -> JSON {
            .object(members + [("type", .integer(status))] + (describe(status).map { [("description", .string($0))] } ?? []))
        }
        if showsTotals {
            return .array(
                totals.map { status, count in
                    described([("size", .integer(count)), ("percent", .number(Double(count) / Double(max(byteCount, 1)) * 100))], status)
                })
        }
        return .array(entries.map { described([("offset", .integer($0.offset)), ("length", .integer($0.byteCount))], $0.status) })
    }
}
