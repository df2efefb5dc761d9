/// A JSON value that keeps its keys in order, so that what people read in one format stands in the same place in the other.
enum JSON: Equatable {
    case string(String)
    case integer(UInt64)
    /// Must be finite: JSON has no other numbers.
    case number(Double)
    case bool(Bool)
    case array([JSON])
    case object([(key: String, value: JSON)])

    static func == (left: JSON, right: JSON) -> Bool { left.text == right.text }

    /// RFC 8259, one member a line, indented by tabs.
    var text: String {
        var result = ""
        write(to: &result, indent: "\n")
        return result
    }

    private func write(to result: inout String, indent: String) {
        switch self {
        case .string(let text): Self.write(text, to: &result)
        case .integer(let value): result += "\(value)"
        case .number(let value): result += value.isFinite ? "\(value)" : "null"
        case .bool(let value): result += value ? "true" : "false"
        case .array(let items):
            Self.write(items, in: ("[", "]"), to: &result, indent) { $0.write(to: &$1, indent: $2) }
        case .object(let members):
            Self.write(members, in: ("{", "}"), to: &result, indent) { member, result, indent in
                Self.write(member.key, to: &result)
                result += ": "
                member.value.write(to: &result, indent: indent)
            }
        }
    }

    private static func write<Item>(
        _ items: [Item], in brackets: (String, String), to result: inout String, _ indent: String,
        _ body: (Item, inout String, String) -> Void
    ) {
        result += brackets.0
        for (index, item) in items.enumerated() {
            result += (index == 0 ? "" : ",") + indent + "\t"
            body(item, &result, indent + "\t")
        }
        result += (items.isEmpty ? "" : indent) + brackets.1
    }

    /// Escapes what RFC 8259, 7 demands, and DEL, which terminals do not like either.
    private static func write(_ text: String, to result: inout String) {
        result += "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": result += "\\\""
            case "\\": result += "\\\\"
            case "\n": result += "\\n"
            case "\r": result += "\\r"
            case "\t": result += "\\t"
            case "\u{0}"..<" ", "\u{7F}":
                let digits = String(scalar.value, radix: 16)
                result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: result.unicodeScalars.append(scalar)
            }
        }
        result += "\""
    }
}
