/// Sizes and offsets as people write them: `1048576`, `0x100000`, `1M`, `16GiB`.
enum ByteSize {
    /// No export is larger (S-LIM-14).
    static let limit = UInt64(Int64.max)

    /// Bytes, or nil when `text` is not a size or exceeds 2^63 - 1.
    ///
    /// Decimal digits with an optional suffix, upper or lower case: `B`, or `K M G T P E` for powers of 1024, which may be followed by
    /// `B` or `iB`. Or hexadecimal digits after `0x`, without a suffix.
    static func parse(_ text: some StringProtocol) -> UInt64? {
        let lowered = text.lowercased()
        if lowered.hasPrefix("0x") { return bounded(UInt64(digits: lowered.dropFirst(2), radix: 16)) }
        let digits = lowered.prefix { $0.isASCII && $0.isNumber }
        guard let count = UInt64(digits: digits, radix: 10), let shift = shift(of: lowered.dropFirst(digits.count)) else { return nil }
        let (bytes, overflow) = count.multipliedReportingOverflow(by: 1 << shift)
        return overflow ? nil : bounded(bytes)
    }

    /// A count as `qemu-nbd -o` reads it (`strtoull` with base 0): decimal, octal after `0`, hexadecimal after `0x`; no suffix.
    static func parseCount(_ text: String) -> UInt64? {
        let lowered = text.lowercased()
        if lowered.hasPrefix("0x") { return bounded(UInt64(digits: lowered.dropFirst(2), radix: 16)) }
        if lowered.hasPrefix("0"), lowered.count > 1 { return bounded(UInt64(digits: lowered.dropFirst(), radix: 8)) }
        return bounded(UInt64(digits: lowered[...], radix: 10))
    }

    private static func bounded(_ value: UInt64?) -> UInt64? {
        guard let value, value <= limit else { return nil }
        return value
    }

    private static func shift(of suffix: Substring) -> UInt64? {
        var suffix = suffix
        guard let unit = suffix.popFirst() else { return 0 }
        if unit == "b" { return suffix.isEmpty ? 0 : nil }
        guard let power = "kmgtpe".firstIndex(of: unit), ["", "b", "ib"].contains(suffix) else { return nil }
        return UInt64("kmgtpe".distance(from: "kmgtpe".startIndex, to: power) + 1) * 10
    }
}

extension UInt64 {
    /// Digits only: `Int.init(_:radix:)` would also take a sign.
    fileprivate init?(digits: Substring, radix: Int) {
        guard let first = digits.first, first != "+", first != "-" else { return nil }
        self.init(digits, radix: radix)
    }
}
