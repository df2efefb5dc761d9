/// An address of the Internet protocol, version 4 or 6. An IPv4 address in the clothes of IPv6 (`::ffff:192.0.2.1`, as a socket for both sees
/// its clients) is the IPv4 address: a rule about it must not be passed by.
public enum IPAddress: Hashable, Sendable {
    case v4(UInt32)
    case v6(UInt128)

    /// - Parameter bits: of the IPv6 address; mapped ones become `.v4`.
    public init(bits: UInt128) {
        self = bits >> 32 == 0xFFFF ? .v4(UInt32(truncatingIfNeeded: bits)) : .v6(bits)
    }

    /// Reads `192.0.2.1`, `2001:db8::1` or `::ffff:192.0.2.1`; a zone (`fe80::1%eth0`) is left out. nil for anything else: no names, no
    /// leading zeroes, no short forms such as `10.1`.
    public init?(_ text: some StringProtocol) {
        let bytes = Array(text.utf8.prefix { $0 != UInt8(ascii: "%") }.prefix(46))
        guard bytes.count <= 45 else { return nil }
        if bytes.contains(UInt8(ascii: ":")) {
            guard let bits = Self.v6(bytes[...]) else { return nil }
            self.init(bits: bits)
        } else {
            guard text.utf8.count == bytes.count, let bits = Self.v4(bytes[...]) else { return nil }
            self = .v4(bits)
        }
    }

    private static func v4(_ text: ArraySlice<UInt8>) -> UInt32? {
        let parts = text.split(separator: UInt8(ascii: "."), omittingEmptySubsequences: false)
        guard parts.count == 4 else { return nil }
        var bits: UInt32 = 0
        for part in parts {
            guard 1...3 ~= part.count, part.count == 1 || part.first != UInt8(ascii: "0") else { return nil }
            var value: UInt32 = 0
            for byte in part {
                guard UInt8(ascii: "0")...UInt8(ascii: "9") ~= byte else { return nil }
                value = value * 10 + UInt32(byte - UInt8(ascii: "0"))
            }
            guard value <= 255 else { return nil }
            bits = bits << 8 | value
        }
        return bits
    }

    /// Groups before `::` fill up from the front, those behind it from the end.
    private static func v6(_ text: ArraySlice<UInt8>) -> UInt128? {
        let colon = UInt8(ascii: ":")
        guard let gap = text.indices.first(where: { text[$0...].starts(with: [colon, colon]) }) else {
            guard let groups = groups(text), groups.count == 8 else { return nil }
            return bits(of: groups)
        }
        let (front, back) = (text[..<gap], text[(gap + 2)...])
        guard let head = front.isEmpty ? [] : groups(front), !front.contains(UInt8(ascii: ".")),
            let tail = back.isEmpty ? [] : groups(back), head.count + tail.count < 8
        else { return nil }
        return bits(of: head + Array(repeating: 0, count: 8 - head.count - tail.count) + tail)
    }

    /// Groups of 16 bits between colons; the last two may be written as an IPv4 address.
    private static func groups(_ text: ArraySlice<UInt8>) -> [UInt16]? {
        var groups: [UInt16] = []
        let parts = text.split(separator: UInt8(ascii: ":"), omittingEmptySubsequences: false)
        for (index, part) in parts.enumerated() {
            if index == parts.count - 1, part.contains(UInt8(ascii: ".")) {
                guard let bits = v4(part) else { return nil }
                groups += [UInt16(truncatingIfNeeded: bits >> 16), UInt16(truncatingIfNeeded: bits)]
            } else {
                guard 1...4 ~= part.count, part.allSatisfy({ Character(UnicodeScalar($0)).isHexDigit }),
                    let group = UInt16(String(decoding: part, as: UTF8.self), radix: 16)
                else { return nil }
                groups.append(group)
            }
        }
        return groups
    }

    private static func bits(of groups: [UInt16]) -> UInt128 { groups.reduce(0) { $0 << 16 | UInt128($1) } }
}

extension IPAddress: CustomStringConvertible {
    /// Shortest form, as in RFC 5952.
    public var description: String {
        switch self {
        case .v4(let bits):
            return [24, 16, 8, 0].map { String(bits >> $0 & 0xFF) }.joined(separator: ".")
        case .v6(let bits):
            let groups = (0..<8).map { UInt16(truncatingIfNeeded: bits >> (112 - 16 * $0)) }
            // The longest run of zeroes, the first of several, but not a single one.
            var gap = 0..<0
            for start in groups.indices {
                let end = groups[start...].firstIndex { $0 != 0 } ?? 8
                if end - start >= max(2, gap.count + 1) { gap = start..<end }
            }
            let texts = groups.map { String($0, radix: 16) }
            guard !gap.isEmpty else { return texts.joined(separator: ":") }
            return texts[..<gap.lowerBound].joined(separator: ":") + "::" + texts[gap.upperBound...].joined(separator: ":")
        }
    }
}

/// All addresses that begin with the same bits: `10.0.0.0/8`, `2001:db8::/32`, or one address.
public struct IPNetwork: Hashable, Sendable, CustomStringConvertible {
    public let address: IPAddress
    /// Bits that count, from the front: 0…32 or 0…128.
    public let prefixLength: Int

    /// - Returns: nil for a length that the kind of address has not, and for bits behind it: `10.0.0.1/8` is a mistake or means something else.
    public init?(_ address: IPAddress, prefixLength: Int) {
        guard 0...Self.width(address) ~= prefixLength, Self.bits(address) & ~Self.mask(prefixLength, Self.width(address)) == 0 else { return nil }
        self.address = address
        self.prefixLength = prefixLength
    }

    /// Reads an address, with or without `/` and a length. `::ffff:10.0.0.0/104` is `10.0.0.0/8`.
    public init?(_ text: some StringProtocol) {
        let parts = text.split(separator: "/", omittingEmptySubsequences: false)
        guard 1...2 ~= parts.count, let address = IPAddress(parts[0]), !parts[0].contains("%") else { return nil }
        var length = Self.width(address)
        if parts.count == 2 {
            guard parts[1].utf8.count <= 3, parts[1].allSatisfy({ $0.isASCII && $0.isNumber }), let given = Int(parts[1]) else { return nil }
            let isMapped = parts[0].contains(":") && length == 32
            length = isMapped ? given - 96 : given
        }
        self.init(address, prefixLength: length)
    }

    public func contains(_ other: IPAddress) -> Bool {
        let width = Self.width(address)
        return Self.width(other) == width && (Self.bits(other) ^ Self.bits(address)) & Self.mask(prefixLength, width) == 0
    }

    public var description: String { prefixLength == Self.width(address) ? "\(address)" : "\(address)/\(prefixLength)" }

    private static func width(_ address: IPAddress) -> Int { if case .v4 = address { 32 } else { 128 } }

    private static func bits(_ address: IPAddress) -> UInt128 {
        switch address {
        case .v4(let bits): UInt128(bits)
        case .v6(let bits): bits
        }
    }

    /// The first `length` of `width` bits. A shift by all of them gives zero: Swift's shifts do not wrap.
    private static func mask(_ length: Int, _ width: Int) -> UInt128 {
        let all: UInt128 = width == 32 ? 0xFFFF_FFFF : .max
        return all & ~(all >> length)
    }
}
