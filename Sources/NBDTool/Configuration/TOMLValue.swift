/// A value of a TOML document. Dates and times are missing: the reader refuses them.
enum TOMLValue {
    case string(String)
    case integer(Int64)
    /// Always finite.
    case float(Double)
    case boolean(Bool)
    case array([TOMLValue])
    case table(TOMLTable)
    /// What `[[name]]` makes: unlike an array, it grows with every such header.
    case tables(TOMLTableArray)

    /// The same value as JSON, for a decoder that is there already: keys in alphabetical order, no spaces.
    var json: String {
        var text = ""
        write(to: &text)
        return text
    }

    private func write(to text: inout String) {
        switch self {
        case .string(let string): text += JSON.string(string).text
        case .integer(let number): text += "\(number)"
        case .float(let number): text += "\(number)"
        case .boolean(let flag): text += "\(flag)"
        case .array(let items): Self.write(items, in: ("[", "]"), to: &text) { $0.write(to: &$1) }
        case .tables(let array): Self.write(array.tables, in: ("[", "]"), to: &text) { TOMLValue.table($0).write(to: &$1) }
        case .table(let table):
            Self.write(table.members.sorted { $0.key < $1.key }, in: ("{", "}"), to: &text) { member, text in
                text += JSON.string(member.key).text + ":"
                member.value.value.write(to: &text)
            }
        }
    }

    private static func write<Item>(
        _ items: [Item], in brackets: (String, String), to text: inout String, _ body: (Item, inout String) -> Void
    ) {
        text += brackets.0
        for (index, item) in items.enumerated() {
            if index > 0 { text += "," }
            body(item, &text)
        }
        text += brackets.1
    }
}

/// A table while it is read: a reference, because headers and dotted keys come back to tables that exist.
final class TOMLTable {
    /// What wrote the table down decides who may add to it (TOML 1.0.0, "Table").
    enum Origin {
        /// `[name]` or an element of `[[name]]`: the lines below add to it; other headers may put tables inside.
        case header
        /// `a` in `[a.b]`: the same, and one `[a]` may still follow.
        case passed
        /// `a` in `a.b = 1`: more dotted keys add to it.
        case dotted
        /// `{ … }`: nobody.
        case inline
    }

    struct Member {
        let value: TOMLValue
        /// Where its key stands, in bytes.
        let offset: Int
    }

    var origin: Origin
    var members: [String: Member] = [:]

    init(_ origin: Origin) {
        self.origin = origin
    }
}

/// The tables of one `[[name]]`; never empty once it is read.
final class TOMLTableArray {
    var tables: [TOMLTable]

    init(_ tables: [TOMLTable]) {
        self.tables = tables
    }
}

/// Why a text is not a TOML document that can be read here.
struct TOMLError: Error, Equatable {
    /// From 1.
    let line: Int
    /// In Unicode scalars, from 1.
    let column: Int
    let reason: String
}
