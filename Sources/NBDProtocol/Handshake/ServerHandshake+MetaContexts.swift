// LIST_META_CONTEXT and SET_META_CONTEXT: 0 name length L(4)  4 name(L)  4+L count N(4), then N × { length q(4)  query(q) }.
extension ServerHandshake {
    mutating func metaContexts(_ option: OptionType, _ payload: inout WireReader) throws(Refusal) -> Action {
        guard option == .listMetaContext || mode != .simple else {
            throw Refusal(.invalid, "\(option) needs structured replies or extended headers first")
        }
        let name = try exportName(option, &payload)
        let queries = try queries(option, name, &payload)
        state = .lookingUp(option, .metaContexts(name: name, queries: queries))
        return .lookUp(name)
    }

    private func queries(_ option: OptionType, _ export: String, _ payload: inout WireReader) throws(Refusal) -> [String]? {
        var queries: [String] = []
        do {
            let count: UInt32 = try payload.read()
            trace?(.negotiateMetaContext(option, export: export, queryCount: count))
            guard count <= limits.queryCountLimit else {
                throw Refusal(.tooBig, "\(count) queries; at most \(limits.queryCountLimit) are allowed")
            }
            for _ in 0..<count {
                let length: UInt32 = try payload.read()
                if length > stringByteCountLimit {
                    // No context has such a name: skipped, not an error (S-META-08).
                    try payload.skip(Int(length))
                    trace?(.negotiateMetaQuerySkip(reason: "query of \(length) bytes"))
                } else {
                    queries.append(try payload.string(Int(length)))
                }
            }
        } catch let refusal as Refusal {
            throw refusal
        } catch WireError.badString {
            throw Refusal(.invalid, "a query is not UTF-8 without NUL")
        } catch {
            throw .malformed(option)
        }
        guard payload.byteCount == 0 else {
            throw Refusal(.invalid, "\(payload.byteCount) bytes are left after the last query")  // S-BUG-01
        }
        // LIST without queries asks for everything, SET for nothing (S-META-10, S-META-11).
        return option == .listMetaContext && queries.isEmpty ? nil : queries
    }

    /// One META_CONTEXT for each match, in the export's order whatever the order of the queries, then ACK (S-META-19…22).
    mutating func answerMetaContexts(
        _ option: OptionType, _ export: ExportDescription, _ queries: [String]?, output: inout [UInt8]
    ) {
        let isList = option == .listMetaContext
        let matches = export.contexts.filter { context in
            queries?.contains { Self.matches($0, context.name, wildcards: isList) } ?? true
        }
        for context in matches {
            let id = isList ? 0 : context.id
            trace?(.negotiateMetaQueryReply(context: context.name, id: id))
            var data: [UInt8] = []
            data.appendBigEndian(id)
            data.append(contentsOf: context.name.utf8)
            reply(.metaContext, to: option, data, output: &output)
        }
        if !isList { selection = (export.id, matches) }
        reply(.ack, to: option, output: &output)
    }

    /// A query names a context exactly; in LIST, a namespace stands for everything in it, and so does `qemu:dirty-bitmap:` (S-META-12…18).
    private static func matches(_ query: String, _ name: String, wildcards: Bool) -> Bool {
        if query == name { return true }
        guard wildcards else { return false }
        // The names of bitmaps may have colons in them, which mean nothing.
        let colon = query.utf8.firstIndex(of: UInt8(ascii: ":"))
        let isWildcard = colon != nil && colon == query.utf8.indices.last || query == "qemu:dirty-bitmap:"
        return isWildcard && name.utf8.starts(with: query.utf8)
    }
}
