extension NBDURI {
    /// Reads a URI.
    ///
    /// - Parameter allowsLocalFiles: whether the URI may name files of ours, for TLS (P-URI-06). Only for URIs that a person has typed.
    /// - Throws: `NBDURIError` naming the part that is wrong. No text traps, whatever it holds.
    public init(parsing text: String, allowsLocalFiles: Bool = false) throws(NBDURIError) {
        let all = Array(text.utf8)
        guard let colon = all.firstIndex(of: UInt8(ascii: ":")), all.dropFirst(colon).starts(with: "://".utf8) else { throw .notAURI }
        let (transport, requiresTLS) = try Self.scheme(all[..<colon])
        for (index, byte) in all.enumerated() where byte <= 0x20 || byte == 0x7F { throw .badCharacter(at: index) }
        guard !all.contains(UInt8(ascii: "#")) else { throw .fragment }

        // //authority/path?query
        let rest = all[(colon + 3)...]
        let queryStart = rest.firstIndex(of: UInt8(ascii: "?")) ?? rest.endIndex
        let pathStart = rest[..<queryStart].firstIndex(of: UInt8(ascii: "/")) ?? queryStart
        var authority = rest[..<pathStart]
        var user: String?
        if let at = authority.lastIndex(of: UInt8(ascii: "@")) {
            user = try Self.text(authority[..<at], part: "user name")
            authority = authority[(at + 1)...]
        }
        // P-URI-04: without the first slash only, so that "//disk" names "/disk".
        let exportName = try Self.text(rest[pathStart..<queryStart].dropFirst(), part: "export name", allowsControls: true)
        let query = try Query(rest[queryStart...].dropFirst(), allowsLocalFiles: allowsLocalFiles)

        let address: Address
        switch transport {
        case .tcp:
            address = try Self.tcpAddress(authority)
        case .unix:
            guard authority.isEmpty else { throw .unexpectedHost(shown(authority)) }
            guard let path = query.socket else { throw .missingSocket }
            address = .unix(path: path)
        case .vsock:
            address = try Self.vsockAddress(authority)
        }
        if query.socket != nil, transport != .unix { throw .badParameter("socket", reason: "only goes with nbd+unix and nbds+unix") }
        self.init(address, exportName: exportName, requiresTLS: requiresTLS, user: user, tls: query.tls)
    }

    private enum Transport { case tcp, unix, vsock }

    private static func scheme(_ bytes: ArraySlice<UInt8>) throws(NBDURIError) -> (Transport, requiresTLS: Bool) {
        // Schemes have no case (RFC 3986, 3.1).
        switch String(decoding: bytes, as: UTF8.self).lowercased() {
        case "nbd": return (.tcp, false)
        case "nbds": return (.tcp, true)
        case "nbd+unix": return (.unix, false)
        case "nbds+unix": return (.unix, true)
        case "nbd+vsock": return (.vsock, false)
        case "nbds+vsock": return (.vsock, true)
        default: throw .unknownScheme(shown(bytes))
        }
    }

    private static func tcpAddress(_ authority: ArraySlice<UInt8>) throws(NBDURIError) -> Address {
        var host = authority
        var port: ArraySlice<UInt8> = []
        let isIPv6 = authority.first == UInt8(ascii: "[")
        if isIPv6 {
            guard let end = authority.firstIndex(of: UInt8(ascii: "]")) else { throw .badHost(shown(authority)) }
            host = authority[(authority.startIndex + 1)..<end]
            port = authority[(end + 1)...]
            guard port.isEmpty || port.first == UInt8(ascii: ":") else { throw .badHost(shown(authority)) }
            port = port.dropFirst()
        } else if let colon = authority.firstIndex(of: UInt8(ascii: ":")) {
            host = authority[..<colon]
            port = authority[(colon + 1)...]
            // An IPv6 address without brackets, or two ports: both are mistakes worth a clear word.
            guard !port.contains(UInt8(ascii: ":")) else { throw .badHost(shown(authority)) }
        }
        let name = try text(host, part: "host")
        guard name.utf8.contains(UInt8(ascii: ":")) == isIPv6, !name.utf8.contains(where: { $0 == UInt8(ascii: "/") || $0 <= 0x20 }) else {
            throw .badHost(shown(authority))
        }
        guard port.isEmpty || (1...65535).contains(decimal(port) ?? 0) else { throw .badPort(shown(port)) }
        return .tcp(host: name.isEmpty ? "localhost" : name, port: UInt16(clamping: decimal(port) ?? UInt64(defaultPort)))
    }

    private static func vsockAddress(_ authority: ArraySlice<UInt8>) throws(NBDURIError) -> Address {
        let parts = authority.split(separator: UInt8(ascii: ":"), maxSplits: 1, omittingEmptySubsequences: false)
        // 2 is the host, as seen from a virtual machine.
        let cid = parts[0].isEmpty ? 2 : decimal(parts[0])
        guard let cid, let number = UInt32(exactly: cid) else { throw .badHost(shown(parts[0])) }
        let digits = parts.count > 1 ? parts[1] : []
        guard let port = UInt32(exactly: digits.isEmpty ? UInt64(defaultPort) : decimal(digits) ?? .max) else {
            throw .badPort(shown(digits))
        }
        return .vsock(cid: number, port: port)
    }

    /// At most 18 digits and nothing else.
    private static func decimal(_ bytes: ArraySlice<UInt8>) -> UInt64? {
        guard (1...18).contains(bytes.count) else { return nil }
        var value: UInt64 = 0
        for byte in bytes {
            guard (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) else { return nil }
            value = value * 10 + UInt64(byte - UInt8(ascii: "0"))
        }
        return value
    }

    fileprivate static func text(_ bytes: ArraySlice<UInt8>, part: String, allowsControls: Bool = false) throws(NBDURIError) -> String {
        guard let text = String(protocolBytes: try Percent.decode(bytes)),
            allowsControls || !text.utf8.contains(where: { $0 < 0x20 || $0 == 0x7F })
        else { throw .badText(part: part) }
        return text
    }
}

/// What stands behind the question mark.
private struct Query {
    var socket: String?
    var tls = NBDURI.TLSParameters()

    init(_ bytes: ArraySlice<UInt8>, allowsLocalFiles: Bool) throws(NBDURIError) {
        var seen: Set<String> = []
        for item in bytes.split(separator: UInt8(ascii: "&")) {
            let equals = item.firstIndex(of: UInt8(ascii: "=")) ?? item.endIndex
            let name = try NBDURI.text(item[..<equals], part: "name of a parameter")
            let raw = item[equals...].dropFirst()
            if name.hasPrefix("x-") { continue }  // P-URI-07: experiments of others
            guard seen.insert(name).inserted else { throw .repeatedParameter(name.sanitized()) }
            switch name {
            case "socket":
                // Only here may a NUL stand, and only in front.
                let path = try Percent.decode(raw)
                let isAbstract = path.first == 0
                guard let text = String(protocolBytes: Array(path.dropFirst(isAbstract ? 1 : 0))) else { throw .badText(part: "socket") }
                guard !text.isEmpty else { throw .badParameter(name, reason: "is empty") }
                socket = isAbstract ? "\0" + text : text
            case "tls-type":
                guard let kind = NBDURI.TLSParameters.Kind(rawValue: try NBDURI.text(raw, part: name)) else {
                    throw .badParameter(name, reason: "must be anon, x509 or psk")
                }
                tls.kind = kind
            case "tls-hostname":
                let hostname = try NBDURI.text(raw, part: name)
                guard !hostname.isEmpty else { throw .badParameter(name, reason: "is empty") }
                tls.hostname = hostname
            case "tls-verify-peer":
                switch try NBDURI.text(raw, part: name) {
                case "0", "false": tls.verifiesPeer = false
                case "1", "true": tls.verifiesPeer = true
                default: throw .badParameter(name, reason: "must be 0 or 1")
                }
            case "tls-certificates", "tls-psk-file":
                // P-URI-06: a URI may come from a stranger, who must not choose which of our files are read.
                guard allowsLocalFiles else { throw .badParameter(name, reason: "a URI may not name local files") }
                let path = try NBDURI.text(raw, part: name)
                guard !path.isEmpty else { throw .badParameter(name, reason: "is empty") }
                if name == "tls-psk-file" { tls.preSharedKeys = path } else { tls.certificates = path }
            default:
                throw .unknownParameter(name.sanitized())
            }
        }
    }
}

private func shown(_ bytes: ArraySlice<UInt8>) -> String { String(decoding: bytes, as: UTF8.self).sanitized() }

/// Percent-encoding (RFC 3986, 2.1), bytewise.
enum Percent {
    static func encode(_ text: String, keeping kept: String) -> String {
        let kept = Array(kept.utf8)
        var result: [UInt8] = []
        for byte in text.utf8 {
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"), UInt8(ascii: "0")...UInt8(ascii: "9"),
                UInt8(ascii: "-"), UInt8(ascii: "."), UInt8(ascii: "_"), UInt8(ascii: "~"):
                result.append(byte)
            default:
                if kept.contains(byte) { result.append(byte) } else { result += [UInt8(ascii: "%"), digit(byte >> 4), digit(byte & 15)] }
            }
        }
        return String(decoding: result, as: UTF8.self)
    }

    static func decode(_ bytes: ArraySlice<UInt8>) throws(NBDURIError) -> [UInt8] {
        var result: [UInt8] = []
        var index = bytes.startIndex
        while index < bytes.endIndex {
            guard bytes[index] == UInt8(ascii: "%") else {
                result.append(bytes[index])
                index += 1
                continue
            }
            guard bytes.endIndex - index >= 3, let high = value(bytes[index + 1]), let low = value(bytes[index + 2]) else {
                throw .badCharacter(at: index)
            }
            result.append(high << 4 | low)
            index += 3
        }
        return result
    }

    private static func digit(_ value: UInt8) -> UInt8 { value < 10 ? UInt8(ascii: "0") + value : UInt8(ascii: "A") + value - 10 }

    private static func value(_ digit: UInt8) -> UInt8? {
        switch digit {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): digit - UInt8(ascii: "0")
        case UInt8(ascii: "a")...UInt8(ascii: "f"): digit - UInt8(ascii: "a") + 10
        case UInt8(ascii: "A")...UInt8(ascii: "F"): digit - UInt8(ascii: "A") + 10
        default: nil
        }
    }
}
