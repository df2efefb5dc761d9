import NBDClient
import NBDProtocol

/// `qemu-nbd -L`: what another server offers, laid out as qemu-nbd does.
enum QEMUNBDList {
    /// One export as `-L` shows it.
    struct Entry: Equatable {
        var name: String
        var description: String
        /// nil: the server would not say.
        var info: ExportInfo?
        var contexts: [String] = []
    }

    /// Asks the server at `address`.
    ///
    /// - Throws: `.runtime` naming the server and the reason.
    static func text(of address: NBDURI.Address, tls: TLSClientPlan? = nil) async throws(ToolError) -> String {
        var options = NBDClient.Options()
        options.tls = try tls?.load()
        options.tlsHostname = tls?.hostname
        do {
            let client = try await NBDClient.open(address, options: options)
            do {
                var entries: [Entry] = []
                for listed in try await client.listExports() {
                    var entry = Entry(name: listed.name, description: listed.text)
                    do {
                        entry.info = try await client.info(listed.name)
                        entry.contexts = try await client.listMetaContexts(listed.name).map(\.name)
                    } catch is RefusedOption {
                        // An export may go, or refuse one of the two questions; the others are still worth showing.
                    }
                    entries.append(entry)
                }
                try? await client.disconnect()
                return text(entries)
            } catch {
                await client.close()
                throw error
            }
        } catch {
            throw .runtime("\(error)")
        }
    }

    static func text(_ entries: [Entry]) -> String {
        var lines = ["exports available: \(entries.count)"]
        for entry in entries {
            lines.append(" export: '\(entry.name.sanitized(limit: stringByteCountLimit))'")
            let description = entry.info?.text ?? entry.description
            if !description.isEmpty { lines.append("  description: \(description.sanitized(limit: stringByteCountLimit))") }
            if let info = entry.info {
                lines.append("  size:  \(info.byteCount)")
                let names = flagNames.filter { info.flags.contains($0.flag) }.map(\.name)
                lines.append("  flags: 0x\(String(info.flags.rawValue, radix: 16)) ( \(names.map { $0 + " " }.joined()))")
                if let sizes = info.blockSizes {
                    lines.append("  min block: \(sizes.minimum)")
                    lines.append("  opt block: \(sizes.preferred)")
                    lines.append("  max block: \(sizes.maximumPayload)")
                }
            }
            if !entry.contexts.isEmpty {
                lines.append("  available meta contexts: \(entry.contexts.count)")
                lines += entry.contexts.map { "   \($0.sanitized(limit: stringByteCountLimit))" }
            }
        }
        return lines.map { $0 + "\n" }.joined()
    }

    /// qemu-nbd's words, in the order of the bits. HAS_FLAGS has none.
    private static let flagNames: [(flag: TransmissionFlags, name: String)] = [
        (.readOnly, "readonly"), (.flush, "flush"), (.fua, "fua"), (.rotational, "rotational"), (.trim, "trim"),
        (.writeZeroes, "zeroes"), (.df, "df"), (.multiConn, "multi"), (.resize, "resize"), (.cache, "cache"),
        (.fastZero, "fast-zero"), (.blockStatusPayload, "block-status-payload"),
    ]
}
