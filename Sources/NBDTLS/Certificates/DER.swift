/// What is wrong with some DER: it ends too early, or is of another shape than it must be.
struct DERError: Error, Equatable {}

/// One element: its tag, what is in it, and all of it. Spec: X.690, "Distinguished encoding rules".
struct DERElement: Equatable {
    var tag: UInt8
    var content: ArraySlice<UInt8>
    /// With tag and length.
    var encoding: ArraySlice<UInt8>

    static let boolean: UInt8 = 0x01
    static let integer: UInt8 = 0x02
    static let bitString: UInt8 = 0x03
    static let octetString: UInt8 = 0x04
    static let objectIdentifier: UInt8 = 0x06
    static let sequence: UInt8 = 0x30
    static let set: UInt8 = 0x31

    /// `[number]`, constructed.
    static func context(_ number: UInt8) -> UInt8 { 0xA0 | number }
}

/// Takes elements from the front of some bytes. For certificates that BoringSSL has accepted before, and for lists of revoked ones: no
/// recursion, no copies, no element longer than what is there.
struct DERReader {
    private(set) var rest: ArraySlice<UInt8>

    init(_ bytes: ArraySlice<UInt8>) { rest = bytes }

    var isAtEnd: Bool { rest.isEmpty }
    /// Of the next element; nil at the end.
    var nextTag: UInt8? { rest.first }

    mutating func next() throws(DERError) -> DERElement {
        let start = rest
        guard let tag = rest.popFirst(), tag & 0x1F != 0x1F, let first = rest.popFirst() else { throw DERError() }
        var count = Int(first)
        if first & 0x80 != 0 {
            let width = Int(first & 0x7F)
            // Lengths of over four bytes are longer than any file we read.
            guard 1...4 ~= width, rest.count >= width else { throw DERError() }
            count = rest.prefix(width).reduce(0) { $0 << 8 | Int($1) }
            rest = rest.dropFirst(width)
        }
        guard count <= rest.count else { throw DERError() }
        let content = rest.prefix(count)
        rest = rest.dropFirst(count)
        return DERElement(tag: tag, content: content, encoding: start[start.startIndex..<content.endIndex])
    }

    mutating func next(_ tag: UInt8) throws(DERError) -> DERElement {
        guard nextTag == tag else { throw DERError() }
        return try next()
    }

    mutating func nextIfPresent(_ tag: UInt8) throws(DERError) -> DERElement? { nextTag == tag ? try next() : nil }

    /// What is inside the next element.
    mutating func inside(_ tag: UInt8) throws(DERError) -> DERReader { DERReader(try next(tag).content) }

    /// Seconds since 1970, from a UTCTime or a GeneralizedTime of RFC 5280: to the second, and in UTC.
    mutating func nextTime() throws(DERError) -> Int64 {
        let element = try next()
        let text = Array(element.content)
        guard element.tag == 0x17 && text.count == 13 || element.tag == 0x18 && text.count == 15, text.last == UInt8(ascii: "Z") else {
            throw DERError()
        }
        var digits: [Int64] = []
        for byte in text.dropLast() {
            guard (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) else { throw DERError() }
            digits.append(Int64(byte - UInt8(ascii: "0")))
        }
        let fields = digits.suffix(10)
        func two(_ index: Int) -> Int64 { fields[fields.startIndex + index] * 10 + fields[fields.startIndex + index + 1] }
        var year = digits.dropLast(10).reduce(0) { $0 * 10 + $1 }
        // RFC 5280, 4.1.2.5.1
        if element.tag == 0x17 { year += year < 50 ? 2000 : 1900 }
        let (month, day) = (two(0), two(2))
        guard 1...12 ~= month, 1...31 ~= day, two(4) < 24, two(6) < 60, two(8) <= 60 else { throw DERError() }
        return Self.days(year, month, day) * 86_400 + two(4) * 3600 + two(6) * 60 + two(8)
    }

    /// Days from 1970-01-01 in the Gregorian calendar, counted in eras of 400 years that begin in March.
    private static func days(_ year: Int64, _ month: Int64, _ day: Int64) -> Int64 {
        let shifted = month <= 2 ? year - 1 : year
        let era = shifted / 400
        let yearOfEra = shifted - era * 400
        let dayOfYear = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1
        return era * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719_468
    }
}
