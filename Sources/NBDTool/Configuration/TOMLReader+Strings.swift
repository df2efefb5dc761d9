extension TOMLReader {
    /// Reads the string whose opening quote stands at the position: `"basic"`, `'literal'`, or either with three quotes.
    ///
    /// - Parameter mayHaveLines: Whether three quotes are allowed; they are not in keys.
    mutating func string(mayHaveLines: Bool) throws(TOMLError) -> String {
        let start = position
        let quote = bytes[position]
        let isLong = quoteCount(quote, limit: 3) == 3
        guard !isLong || mayHaveLines else { throw error("a key cannot be a multi-line string", at: start) }
        position += isLong ? 3 : 1
        // A line break right after the opening quotes does not count.
        if isLong { _ = takeNewline() }
        var text: [UInt8] = []
        while let byte = peek {
            if byte == quote {
                guard isLong else {
                    position += 1
                    return String(decoding: text, as: UTF8.self)
                }
                // Two quotes may stand before the closing three.
                let count = quoteCount(quote, limit: 5)
                position += count
                text += Array(repeating: quote, count: count < 3 ? count : count - 3)
                if count >= 3 { return String(decoding: text, as: UTF8.self) }
            } else if byte == UInt8(ascii: "\\"), quote == UInt8(ascii: "\"") {
                try escape(into: &text, mayHaveLines: isLong)
            } else if byte == UInt8(ascii: "\n") || byte == UInt8(ascii: "\r") {
                guard isLong else { break }
                guard takeNewline() else { throw controlCharacter() }
                text.append(UInt8(ascii: "\n"))
            } else {
                guard !Self.isControl(byte) else { throw controlCharacter() }
                text.append(byte)
                position += 1
            }
        }
        throw error("the string that begins here has no end", at: start)
    }

    private func quoteCount(_ quote: UInt8, limit: Int) -> Int {
        bytes[position...].prefix(limit).prefix { $0 == quote }.count
    }

    /// Reads what a backslash begins.
    private mutating func escape(into text: inout [UInt8], mayHaveLines: Bool) throws(TOMLError) {
        let start = position
        position += 1
        let letter = peek
        if letter != nil { position += 1 }
        switch letter {
        case UInt8(ascii: "b"): text.append(0x08)
        case UInt8(ascii: "t"): text.append(0x09)
        case UInt8(ascii: "n"): text.append(0x0A)
        case UInt8(ascii: "f"): text.append(0x0C)
        case UInt8(ascii: "r"): text.append(0x0D)
        case UInt8(ascii: "\""), UInt8(ascii: "\\"): text.append(bytes[position - 1])
        case UInt8(ascii: "u"): try codePoint(digitCount: 4, into: &text, start)
        case UInt8(ascii: "U"): try codePoint(digitCount: 8, into: &text, start)
        default:
            // A backslash at the end of a line swallows all white space up to the next text.
            position = start + 1
            skipBlanks()
            guard mayHaveLines, takeNewline() else {
                throw error("unknown escape: a backslash is written '\\\\', or the string in single quotes", at: start)
            }
            repeat { skipBlanks() } while takeNewline()
        }
    }

    private mutating func codePoint(digitCount: Int, into text: inout [UInt8], _ start: Int) throws(TOMLError) {
        let digits = bytes[position...].prefix(digitCount).prefix { Self.isDigit($0, radix: 16) }
        guard digits.count == digitCount, let code = UInt32(String(decoding: digits, as: UTF8.self), radix: 16),
            let scalar = Unicode.Scalar(code)
        else { throw error("expected \(digitCount) hexadecimal digits of a Unicode scalar value", at: start) }
        position += digitCount
        text += Array(String(scalar).utf8)
    }
}
