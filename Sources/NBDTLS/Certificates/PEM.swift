/// Text around binary data: `-----BEGIN LABEL-----`, base64, `-----END LABEL-----`. Spec: RFC 7468.
enum PEM {
    /// Every block with this label; others, and what is between them, do not matter.
    static func blocks(_ label: String, in bytes: [UInt8]) throws(DERError) -> [[UInt8]] {
        var blocks: [[UInt8]] = []
        var current: [UInt8]?
        for raw in bytes.split(whereSeparator: { $0 == UInt8(ascii: "\n") || $0 == UInt8(ascii: "\r") }) {
            if raw.starts(with: "-----BEGIN \(label)-----".utf8) {
                current = []
            } else if raw.starts(with: "-----END \(label)-----".utf8) {
                guard let text = current else { throw DERError() }
                blocks.append(try decode(text))
                current = nil
            } else {
                current?.append(contentsOf: raw)
            }
        }
        guard current == nil else { throw DERError() }
        return blocks
    }

    /// Base64 with its padding (RFC 4648, 4); white space is skipped.
    private static func decode(_ text: [UInt8]) throws(DERError) -> [UInt8] {
        var result: [UInt8] = []
        var bits: UInt32 = 0
        var count = 0
        var padding = 0
        for byte in text where byte != UInt8(ascii: " ") && byte != UInt8(ascii: "\t") {
            guard byte != UInt8(ascii: "=") else {
                padding += 1
                continue
            }
            guard padding == 0, let value = value(byte) else { throw DERError() }
            bits = bits << 6 | value
            count += 1
            if count.isMultiple(of: 4) {
                result += [UInt8(truncatingIfNeeded: bits >> 16), UInt8(truncatingIfNeeded: bits >> 8), UInt8(truncatingIfNeeded: bits)]
            }
        }
        switch (count % 4, padding) {
        case (0, 0): break
        case (2, 2): result.append(UInt8(truncatingIfNeeded: bits >> 4))
        case (3, 1): result += [UInt8(truncatingIfNeeded: bits >> 10), UInt8(truncatingIfNeeded: bits >> 2)]
        default: throw DERError()
        }
        return result
    }

    private static func value(_ byte: UInt8) -> UInt32? {
        switch byte {
        case UInt8(ascii: "A")...UInt8(ascii: "Z"): UInt32(byte - UInt8(ascii: "A"))
        case UInt8(ascii: "a")...UInt8(ascii: "z"): UInt32(byte - UInt8(ascii: "a")) + 26
        case UInt8(ascii: "0")...UInt8(ascii: "9"): UInt32(byte - UInt8(ascii: "0")) + 52
        case UInt8(ascii: "+"): 62
        case UInt8(ascii: "/"): 63
        default: nil
        }
    }
}
