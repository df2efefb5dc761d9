import NBDProtocol

/// `key=value,key=value`, where `,,` in a value stands for one comma: QEMU's notation for structured options.
///
/// Hands out each value once, and `finish()` names a key that nobody asked for: so no key is ever ignored.
struct KeyValueList {
    /// What is being parsed, for messages: `--export`.
    var context: String
    private var values: [(key: String, value: String)] = []

    /// - Parameter repeatable: Keys that may be given more than once (`takeAll`).
    /// - Throws: `.usage` for an empty key, a key without `=`, or another key given twice.
    init(_ text: String, context: String, repeatable: Set<String> = []) throws(ToolError) {
        self.context = context
        for field in Self.fields(of: text) {
            guard let equals = field.firstIndex(of: "="), equals != field.startIndex else {
                throw .usage("\(context): expected key=value, got '\(field.sanitized())'")
            }
            let key = String(field[..<equals])
            guard repeatable.contains(key) || !values.contains(where: { $0.key == key }) else { throw .usage("\(context): '\(key)' is given twice") }
            values.append((key, String(field[field.index(after: equals)...])))
        }
        guard !values.isEmpty else { throw .usage("\(context): expected key=value, got nothing") }
    }

    /// The value of `key`, which counts as understood from now on.
    mutating func take(_ key: String) -> String? {
        guard let index = values.firstIndex(where: { $0.key == key }) else { return nil }
        return values.remove(at: index).value
    }

    /// What nobody has taken, in order.
    var pairs: [(key: String, value: String)] { values }

    /// The values of a key that may be repeated, in order.
    mutating func takeAll(_ key: String) -> [String] {
        defer { values.removeAll { $0.key == key } }
        return values.filter { $0.key == key }.map(\.value)
    }

    /// - Throws: `.usage` unless the value is a size (`ByteSize.parse`).
    mutating func takeSize(_ key: String) throws(ToolError) -> UInt64? {
        guard let text = take(key) else { return nil }
        guard let size = ByteSize.parse(text) else { throw .usage("\(context): invalid size '\(text)' for '\(key)'") }
        return size
    }

    /// - Throws: `.usage` unless the value is one of on, off, yes, no, true, false.
    mutating func takeSwitch(_ key: String) throws(ToolError) -> Bool? {
        switch take(key) {
        case nil: return nil
        case "on", "yes", "true": return true
        case "off", "no", "false": return false
        case .some(let text): throw .usage("\(context): '\(key)' is on or off, not '\(text)'")
        }
    }

    /// - Throws: `.usage` naming a key that was never taken.
    func finish() throws(ToolError) {
        if let key = values.first?.key { throw .usage("\(context): unknown key '\(key.sanitized())'") }
    }

    private static func fields(of text: String) -> [String] {
        var fields: [String] = []
        var field = ""
        var rest = Substring(text)
        while let character = rest.popFirst() {
            if character != "," {
                field.append(character)
            } else if rest.first == "," {
                field.append(",")
                rest.removeFirst()
            } else {
                fields.append(field)
                field = ""
            }
        }
        // A comma at the very end separates nothing.
        if !field.isEmpty { fields.append(field) }
        return fields
    }
}
