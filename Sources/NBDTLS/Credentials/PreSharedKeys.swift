/// Keys that two sides know, by user: `keys.psk`, as psktool writes it.
///
///     USER:HEXKEY     one on a line; '#' begins a comment
public struct PreSharedKeys: Sendable {
    /// The longest name TLS 1.2 can carry here (BoringSSL's PSK_MAX_IDENTITY_LEN), in bytes.
    static let userByteLimit = 128
    /// The longest key (PSK_MAX_PSK_LEN), in bytes.
    static let keyByteLimit = 256

    private let keys: [String: [UInt8]]

    /// - Throws: naming `path` and the line at fault. Keys never appear in messages.
    public init(path: String) throws(TLSCredentialError) { try self.init(CredentialFile(path: path)) }

    init(_ file: CredentialFile) throws(TLSCredentialError) {
        var keys: [String: [UInt8]] = [:]
        for (index, raw) in file.bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false).enumerated() {
            let line = raw.last == UInt8(ascii: "\r") ? raw.dropLast() : raw
            if line.isEmpty || line.first == UInt8(ascii: "#") { continue }
            let place = "\(file.name): line \(index + 1)"
            // From the end: a name may have colons.
            guard let colon = line.lastIndex(of: UInt8(ascii: ":")), colon != line.startIndex,
                let user = String(validating: line[..<colon], as: UTF8.self), !user.utf8.contains(0)
            else { throw TLSCredentialError("\(place): expected USER:HEXKEY") }
            guard user.utf8.count <= Self.userByteLimit else {
                throw TLSCredentialError("\(place): the user's name is longer than \(Self.userByteLimit) bytes")
            }
            guard let key = Self.bytes(hex: line[(colon + 1)...]), 1...Self.keyByteLimit ~= key.count else {
                throw TLSCredentialError("\(place): the key is not 1 to \(Self.keyByteLimit) bytes in hexadecimal")
            }
            // As in GnuTLS, the first one counts.
            if keys[user] == nil { keys[user] = key }
        }
        guard !keys.isEmpty else { throw TLSCredentialError("\(file.name): no keys") }
        self.keys = keys
    }

    public subscript(user: String) -> [UInt8]? { keys[user] }

    private static func bytes(hex: ArraySlice<UInt8>) -> [UInt8]? {
        guard hex.count.isMultiple(of: 2) else { return nil }
        var bytes: [UInt8] = []
        var high: UInt8?
        for digit in hex {
            guard let value = value(digit) else { return nil }
            if let first = high {
                bytes.append(first << 4 | value)
                high = nil
            } else {
                high = value
            }
        }
        return bytes
    }

    private static func value(_ digit: UInt8) -> UInt8? {
        switch digit {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): digit - UInt8(ascii: "0")
        case UInt8(ascii: "a")...UInt8(ascii: "f"): digit - UInt8(ascii: "a") + 10
        case UInt8(ascii: "A")...UInt8(ascii: "F"): digit - UInt8(ascii: "A") + 10
        default: nil
        }
    }
}
