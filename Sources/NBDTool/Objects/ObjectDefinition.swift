import NBDProtocol

/// One `--object TYPE,id=ID,key=value…`: QEMU's way to describe what other options then name.
///
///     --object tls-creds-x509,id=tls0,dir=/etc/pki/nbd,endpoint=server
///
/// Whoever knows the type takes its keys out of `keys` and ends with `keys.finish()`, so that no key is ever ignored.
struct ObjectDefinition {
    /// `tls-creds-x509`, `authz-list`…
    let type: String
    /// What other options call it.
    let id: String
    /// All other keys. Errors name the object.
    var keys: KeyValueList

    /// - Throws: `.usage` for a missing type, a missing or malformed id, and what `KeyValueList` refuses.
    init(parsing text: String) throws(ToolError) {
        let shown = "--object '\(text.sanitized())'"
        guard text.first != "{" else { throw .usage("\(shown): JSON is not supported: write TYPE,id=ID,key=value…") }
        let head = text.prefix { $0 != "," }
        // Both spellings are QEMU's: `TYPE,…` and `qom-type=TYPE,…`.
        let isKeyed = text.hasPrefix("qom-type=")
        type = String(isKeyed ? head.dropFirst("qom-type=".count) : head)
        guard !type.isEmpty, !type.contains("=") else { throw .usage("\(shown): begins with the type: TYPE,id=ID,key=value…") }
        let rest = String(text.dropFirst(head.count + 1))
        guard !rest.isEmpty else { throw .usage("\(shown): 'id' is missing") }
        var list = try KeyValueList(rest, context: shown)
        guard let id = list.take("id") else { throw .usage("\(shown): 'id' is missing") }
        guard Self.isWellFormed(id) else {
            throw .usage("\(shown): 'id' is a letter, then letters, digits, '-', '.' and '_', not '\(id.sanitized())'")
        }
        self.id = id
        keys = list
        keys.context = "--object \(type.sanitized()),id=\(id)"
    }

    /// Reads every `--object` of a command line.
    ///
    /// - Throws: `.usage` also for two of one id.
    static func all(_ texts: [String]) throws(ToolError) -> [ObjectDefinition] {
        var objects: [ObjectDefinition] = []
        for text in texts {
            let object = try ObjectDefinition(parsing: text)
            guard !objects.contains(where: { $0.id == object.id }) else { throw .usage("--object: id '\(object.id)' is given twice") }
            objects.append(object)
        }
        return objects
    }

    private static func isWellFormed(_ id: String) -> Bool {
        guard let first = id.utf8.first, isLetter(first) else { return false }
        return id.utf8.allSatisfy { isLetter($0) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) || "-._".utf8.contains($0) }
    }

    private static func isLetter(_ byte: UInt8) -> Bool {
        (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte | 0x20)
    }
}
