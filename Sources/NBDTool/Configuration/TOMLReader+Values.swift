import NBDProtocol

extension TOMLReader {
    /// Reads the value at the position.
    ///
    /// - Parameter depth: Tables and arrays that it lies in.
    mutating func value(depth: Int) throws(TOMLError) -> TOMLValue {
        switch peek {
        case UInt8(ascii: "\""), UInt8(ascii: "'"): .string(try string(mayHaveLines: true))
        case UInt8(ascii: "["): .array(try array(depth: depth + 1))
        case UInt8(ascii: "{"): .table(try inlineTable(depth: depth + 1))
        default: try word()
        }
    }

    /// `[1, 2, # comment ⏎ 3, ]`
    private mutating func array(depth: Int) throws(TOMLError) -> [TOMLValue] {
        guard depth <= Self.depthLimit else { throw tooDeep(at: position) }
        position += 1
        var items: [TOMLValue] = []
        try skipLines()
        while !take("]") {
            items.append(try value(depth: depth))
            try skipLines()
            if take(",") {
                try skipLines()
            } else if peek != UInt8(ascii: "]") {
                throw unexpected(wanted: "',' or ']'")
            }
        }
        return items
    }

    private mutating func skipLines() throws(TOMLError) {
        repeat {
            skipBlanks()
            try skipComment()
        } while takeNewline()
    }

    /// `{ a = 1, b.c = 2 }`: on one line, without a comma at the end.
    private mutating func inlineTable(depth: Int) throws(TOMLError) -> TOMLTable {
        guard depth <= Self.depthLimit else { throw tooDeep(at: position) }
        position += 1
        let table = TOMLTable(.inline)
        skipBlanks()
        if take("}") { return table }
        repeat {
            skipBlanks()
            try keyValue(into: table, depth: depth)
            skipBlanks()
        } while take(",")
        guard take("}") else { throw unexpected(wanted: "',' or '}'") }
        return table
    }

    // MARK: Words

    private mutating func word() throws(TOMLError) -> TOMLValue {
        let start = position
        let text = takeAll { byte in
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"), UInt8(ascii: "0")...UInt8(ascii: "9"),
                UInt8(ascii: "_"), UInt8(ascii: "-"), UInt8(ascii: "+"), UInt8(ascii: "."), UInt8(ascii: ":"):
                true
            default: false
            }
        }
        switch text {
        case "": throw unexpected(wanted: "a value")
        case "true": return .boolean(true)
        case "false": return .boolean(false)
        case "inf", "+inf", "-inf", "nan", "+nan", "-nan": throw error("'\(text)' is not supported: no setting is infinite", at: start)
        default: break
        }
        let digitCount = text.utf8.prefix { Self.isDigit($0, radix: 10) }.count
        let separator = text.utf8.dropFirst(digitCount).first
        if digitCount == 4 && separator == UInt8(ascii: "-") || digitCount == 2 && separator == UInt8(ascii: ":") {
            throw error("dates and times are not supported: no setting is one", at: start)
        }
        guard let number = Self.number(text) else {
            throw error("'\(text.sanitized(limit: 40))' is not a value: strings need quotes, numbers stay within 64 bits", at: start)
        }
        return number
    }

    /// nil for what is no number, or none that 64 bits hold.
    static func number(_ text: String) -> TOMLValue? {
        for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] where text.hasPrefix(prefix) {
            guard let digits = digits(text.dropFirst(2), radix: radix) else { return nil }
            return Int64(digits, radix: radix).map { .integer($0) }
        }
        let sign = text.hasPrefix("-") ? "-" : ""
        let unsigned = text.hasPrefix("-") || text.hasPrefix("+") ? text.dropFirst() : text[...]
        let parts = unsigned.split(maxSplits: 1, omittingEmptySubsequences: false) { $0 == "e" || $0 == "E" }
        let mantissa = parts[0].split(separator: ".", maxSplits: 1, omittingEmptySubsequences: false)
        guard let whole = digits(mantissa[0], radix: 10), whole == "0" || !whole.hasPrefix("0") else { return nil }
        if parts.count == 1 && mantissa.count == 1 { return Int64(sign + whole).map { .integer($0) } }
        var float = sign + whole
        if mantissa.count == 2 {
            guard let fraction = digits(mantissa[1], radix: 10) else { return nil }
            float += "." + fraction
        }
        if parts.count == 2 {
            let isNegative = parts[1].hasPrefix("-")
            guard let exponent = digits(isNegative || parts[1].hasPrefix("+") ? parts[1].dropFirst() : parts[1], radix: 10) else {
                return nil
            }
            float += (isNegative ? "e-" : "e") + exponent
        }
        guard let number = Double(float), number.isFinite else { return nil }
        return .float(number)
    }

    /// The digits without their underscores, each of which must stand between two digits.
    private static func digits(_ text: Substring, radix: Int) -> String? {
        var digits = ""
        var wasDigit = false
        for byte in text.utf8 {
            let isDigit = isDigit(byte, radix: radix)
            guard isDigit || wasDigit && byte == UInt8(ascii: "_") else { return nil }
            if isDigit { digits.unicodeScalars.append(Unicode.Scalar(byte)) }
            wasDigit = isDigit
        }
        return wasDigit ? digits : nil
    }

    static func isDigit(_ byte: UInt8, radix: Int) -> Bool {
        Character(Unicode.Scalar(byte)).hexDigitValue.map { $0 < radix } ?? false
    }
}
