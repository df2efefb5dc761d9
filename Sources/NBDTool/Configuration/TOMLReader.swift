import NBDProtocol

/// Reads a TOML 1.0.0 document (toml.io/en/v1.0.0), strictly, into a tree.
///
///     document   = { line }
///     line       = [ header | key "=" value ] [ comment ] newline
///     header     = "[" key "]" | "[[" key "]]"
///     key        = name { "." name }
///
/// Refused though valid: dates and times, infinite floats, and what is nested deeper than `depthLimit`, which also bounds every recursion
/// over the tree. Time and memory are proportional to the length of the text, which the caller bounds.
struct TOMLReader {
    /// Tables and arrays inside each other, and parts of a key.
    static let depthLimit = 32

    struct Key {
        let name: String
        /// Where it stands, in bytes.
        let offset: Int
    }

    let bytes: [UInt8]
    var position = 0

    /// - Throws: The first thing that is wrong, with its place.
    static func read(_ text: String) throws(TOMLError) -> TOMLTable {
        var reader = TOMLReader(bytes: Array(text.utf8))
        return try reader.document()
    }

    private mutating func document() throws(TOMLError) -> TOMLTable {
        let root = TOMLTable(.header)
        var section = root
        var depth = 0
        while true {
            skipBlanks()
            switch peek {
            case nil: return root
            case UInt8(ascii: "["): (section, depth) = try header(in: root)
            case UInt8(ascii: "#"), UInt8(ascii: "\n"), UInt8(ascii: "\r"): break
            default: try keyValue(into: section, depth: depth)
            }
            try endLine()
        }
    }

    // MARK: Headers

    /// - Returns: The table that the lines below belong to, and how deep it lies.
    private mutating func header(in root: TOMLTable) throws(TOMLError) -> (TOMLTable, depth: Int) {
        position += 1
        let isArray = take("[")
        skipBlanks()
        let path = try keyPath(depth: 0)
        guard take("]"), !isArray || take("]") else { throw unexpected(wanted: isArray ? "']]'" : "']'") }
        var table = root
        for key in path.dropLast() { table = try pass(through: key, in: table) }
        guard let last = path.last else { return (root, 0) }
        return (try isArray ? append(last, to: table) : open(last, in: table), path.count)
    }

    /// The table that `key` leads to on the way to another one.
    private func pass(through key: Key, in table: TOMLTable) throws(TOMLError) -> TOMLTable {
        guard let member = table.members[key.name] else {
            let new = TOMLTable(.passed)
            table.members[key.name] = .init(value: .table(new), offset: key.offset)
            return new
        }
        switch member.value {
        case .table(let next) where next.origin != .inline: return next
        case .tables(let array):
            if let last = array.tables.last { return last }
        default: break
        }
        throw error(
            "'\(key.name.sanitized())' cannot be added to: it has its value since line \(place(member.offset).line)", at: key.offset)
    }

    private func open(_ key: Key, in table: TOMLTable) throws(TOMLError) -> TOMLTable {
        guard let member = table.members[key.name] else {
            let new = TOMLTable(.header)
            table.members[key.name] = .init(value: .table(new), offset: key.offset)
            return new
        }
        guard case .table(let known) = member.value, known.origin == .passed else { throw twice(key, member) }
        known.origin = .header
        return known
    }

    private func append(_ key: Key, to table: TOMLTable) throws(TOMLError) -> TOMLTable {
        let new = TOMLTable(.header)
        switch table.members[key.name] {
        case nil: table.members[key.name] = .init(value: .tables(TOMLTableArray([new])), offset: key.offset)
        case .some(let member):
            guard case .tables(let array) = member.value else { throw twice(key, member) }
            array.tables.append(new)
        }
        return new
    }

    // MARK: Keys

    /// Reads `key = value` into `table`, which lies `depth` tables deep.
    mutating func keyValue(into table: TOMLTable, depth: Int) throws(TOMLError) {
        let path = try keyPath(depth: depth)
        guard take("=") else { throw unexpected(wanted: "'='") }
        skipBlanks()
        var table = table
        for key in path.dropLast() {
            if let member = table.members[key.name] {
                guard case .table(let next) = member.value, next.origin == .dotted else { throw twice(key, member) }
                table = next
            } else {
                let new = TOMLTable(.dotted)
                table.members[key.name] = .init(value: .table(new), offset: key.offset)
                table = new
            }
        }
        guard let last = path.last else { return }
        // Before the value: a message about the key is of more use than one about the second value.
        if let member = table.members[last.name] { throw twice(last, member) }
        table.members[last.name] = .init(value: try value(depth: depth + path.count), offset: last.offset)
    }

    /// The parts of a dotted key, at least one, and the blanks behind.
    private mutating func keyPath(depth: Int) throws(TOMLError) -> [Key] {
        var path: [Key] = []
        repeat {
            skipBlanks()
            let offset = position
            path.append(Key(name: try name(), offset: offset))
            guard depth + path.count <= Self.depthLimit else { throw tooDeep(at: offset) }
            skipBlanks()
        } while take(".")
        return path
    }

    private mutating func name() throws(TOMLError) -> String {
        if peek == UInt8(ascii: "\"") || peek == UInt8(ascii: "'") { return try string(mayHaveLines: false) }
        let text = takeAll { byte in
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"), UInt8(ascii: "0")...UInt8(ascii: "9"),
                UInt8(ascii: "_"), UInt8(ascii: "-"):
                true
            default: false
            }
        }
        guard !text.isEmpty else { throw unexpected(wanted: "a key") }
        return text
    }

    // MARK: Bytes

    var peek: UInt8? { position < bytes.count ? bytes[position] : nil }

    mutating func take(_ character: Unicode.Scalar) -> Bool {
        guard peek == UInt8(ascii: character) else { return false }
        position += 1
        return true
    }

    /// The longest run of bytes of a kind; ASCII only.
    mutating func takeAll(_ isWanted: (UInt8) -> Bool) -> String {
        let start = position
        while let byte = peek, isWanted(byte) { position += 1 }
        return String(decoding: bytes[start..<position], as: UTF8.self)
    }

    mutating func skipBlanks() {
        while take(" ") || take("\t") {}
    }

    /// A line feed, with or without a carriage return before it.
    mutating func takeNewline() -> Bool {
        if peek == UInt8(ascii: "\r"), position + 1 < bytes.count, bytes[position + 1] == UInt8(ascii: "\n") { position += 1 }
        return take("\n")
    }

    /// - Throws: At a control character in a comment.
    mutating func skipComment() throws(TOMLError) {
        guard take("#") else { return }
        while let byte = peek, byte != UInt8(ascii: "\n") {
            if byte == UInt8(ascii: "\r"), takeNewline() {
                position -= 1
                return
            }
            guard !Self.isControl(byte) else { throw controlCharacter() }
            position += 1
        }
    }

    private mutating func endLine() throws(TOMLError) {
        skipBlanks()
        try skipComment()
        guard peek == nil || takeNewline() else { throw unexpected(wanted: "the end of the line") }
    }

    /// Tabs are welcome everywhere.
    static func isControl(_ byte: UInt8) -> Bool { byte < 0x20 && byte != 0x09 || byte == 0x7F }

    // MARK: Errors

    private func place(_ offset: Int) -> (line: Int, column: Int) {
        let before = bytes[..<offset]
        let start = before.lastIndex(of: UInt8(ascii: "\n")).map { $0 + 1 } ?? 0
        return (before.count { $0 == UInt8(ascii: "\n") } + 1, String(decoding: before[start...], as: UTF8.self).unicodeScalars.count + 1)
    }

    @inline(never) func error(_ reason: String, at offset: Int) -> TOMLError {
        let place = place(offset)
        return TOMLError(line: place.line, column: place.column, reason: reason)
    }

    @inline(never) func unexpected(wanted: String) -> TOMLError {
        let found: String
        switch peek {
        case nil: found = "the end of the file"
        case UInt8(ascii: "\n"): found = "the end of the line"
        case UInt8(ascii: "\r") where bytes[position...].dropFirst().first == UInt8(ascii: "\n"): found = "the end of the line"
        case .some(let byte) where Self.isControl(byte): return controlCharacter()
        case .some:
            found = "'" + String(String(decoding: bytes[position...].prefix(4), as: UTF8.self).unicodeScalars.prefix(1)).sanitized() + "'"
        }
        return error("expected \(wanted), found \(found)", at: position)
    }

    @inline(never) func controlCharacter() -> TOMLError {
        let code = String(peek ?? 0, radix: 16, uppercase: true)
        return error("unexpected control character U+\(String(repeating: "0", count: 4 - code.count))\(code)", at: position)
    }

    @inline(never) func tooDeep(at offset: Int) -> TOMLError {
        error("nested deeper than \(Self.depthLimit) tables and arrays", at: offset)
    }

    @inline(never) private func twice(_ key: Key, _ first: TOMLTable.Member) -> TOMLError {
        error("'\(key.name.sanitized())' is given twice, first in line \(place(first.offset).line)", at: key.offset)
    }
}
