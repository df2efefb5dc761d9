/// The name of a certificate's subject as one line of text, letter for letter what GnuTLS makes of it, because QEMU compares that with the
/// identities of its `authz` objects (S-TLS-08): `C=GB,O=Example,CN=client`, in the order of the certificate.
///
///     Name ::= SEQUENCE OF SET OF SEQUENCE { type OBJECT IDENTIFIER, value ANY }
///
/// Spec: RFC 4514, 2.4 for what is escaped. Where GnuTLS differs from it, it wins: measured with `gnutls_x509_crt_get_dn` of 3.7.9.
struct DistinguishedName {
    /// - Parameter name: the whole element, with its tag.
    static func text(of name: ArraySlice<UInt8>) throws(DERError) -> String {
        var outer = DERReader(name)
        var sets = try outer.inside(DERElement.sequence)
        var names: [String] = []
        while !sets.isAtEnd {
            var members = try sets.inside(DERElement.set)
            var parts: [String] = []
            while !members.isAtEnd {
                var member = try members.inside(DERElement.sequence)
                let type = try member.next(DERElement.objectIdentifier)
                parts.append(try text(of: type.content, try member.next()))
            }
            names.append(parts.joined(separator: "+"))
        }
        return names.joined(separator: ",")
    }

    private static func text(of type: ArraySlice<UInt8>, _ value: DERElement) throws(DERError) -> String {
        let identifier = try dotted(type)
        guard let known = known[identifier] else { return identifier + "=#" + hex(value.encoding) }
        return known.name + "=" + (known.tags.contains(value.tag) ? escaped(value) : "#" + hex(value.encoding))
    }

    // MARK: Values

    private static let utf8String: UInt8 = 0x0C
    private static let printableString: UInt8 = 0x13
    private static let teletexString: UInt8 = 0x14
    private static let ia5String: UInt8 = 0x16
    private static let universalString: UInt8 = 0x1C
    private static let bmpString: UInt8 = 0x1E

    private static func escaped(_ value: DERElement) -> String {
        let bytes = Array(value.content)
        var text: String?
        switch value.tag {
        case bmpString where bytes.count.isMultiple(of: 2):
            let units = stride(from: 0, to: bytes.count, by: 2).map { UInt16(bytes[$0]) << 8 | UInt16(bytes[$0 + 1]) }
            text = String(validating: units, as: UTF16.self)
        case universalString: break
        case teletexString where bytes.contains(where: { $0 > 0x7F }): break
        default: text = String(validating: bytes, as: UTF8.self)
        }
        // What is no text is a text that begins with a hash sign.
        let shown = text ?? "#" + hex(value.content)
        guard !shown.utf8.contains(0) else { return "#" + hex(value.encoding) }
        return escaped(shown)
    }

    private static func escaped(_ text: String) -> String {
        let bytes = Array(text.utf8)
        var result: [UInt8] = []
        for (index, byte) in bytes.enumerated() {
            let isEdge = index == 0 || index == bytes.count - 1
            if ",+\"\\<>;".utf8.contains(byte) || byte == UInt8(ascii: "#") && index == 0 || byte == UInt8(ascii: " ") && isEdge {
                result.append(UInt8(ascii: "\\"))
            }
            result.append(byte)
        }
        return String(decoding: result, as: UTF8.self)
    }

    private static func hex(_ bytes: ArraySlice<UInt8>) -> String {
        bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
    }

    // MARK: Types

    private struct Known {
        var name: String
        var tags: Set<UInt8>
    }

    private static let directory: Set<UInt8> = [utf8String, printableString, teletexString, universalString, bmpString]

    private static let known: [String: Known] = {
        var known: [String: Known] = [:]
        let directoryNames = [
            "2.5.4.3": "CN", "2.5.4.4": "surName", "2.5.4.7": "L", "2.5.4.8": "ST",
            "2.5.4.9": "street", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.12": "title", "2.5.4.13": "description",
            "2.5.4.15": "businessCategory", "2.5.4.17": "postalCode", "2.5.4.41": "name", "2.5.4.42": "givenName", "2.5.4.43": "initials",
            "2.5.4.44": "generationQualifier", "2.5.4.65": "pseudonym", "0.9.2342.19200300.100.1.1": "UID",
            "1.3.6.1.5.5.7.9.2": "placeOfBirth",
            "1.3.6.1.4.1.311.60.2.1.1": "jurisdictionOfIncorporationLocalityName",
            "1.3.6.1.4.1.311.60.2.1.2": "jurisdictionOfIncorporationStateOrProvinceName",
        ]
        for (identifier, name) in directoryNames { known[identifier] = Known(name: name, tags: directory) }
        let printableNames = [
            "2.5.4.5": "serialNumber", "2.5.4.6": "C", "2.5.4.46": "dnQualifier",
            "1.3.6.1.4.1.311.60.2.1.3": "jurisdictionOfIncorporationCountryName", "2.5.4.20": "telephoneNumber", "1.3.6.1.5.5.7.9.3": "gender", "1.3.6.1.5.5.7.9.4": "countryOfCitizenship",
            "1.3.6.1.5.5.7.9.5": "countryOfResidence",
        ]
        for (identifier, name) in printableNames { known[identifier] = Known(name: name, tags: [printableString]) }
        let ia5Names = ["0.9.2342.19200300.100.1.25": "DC", "1.2.840.113549.1.9.1": "EMAIL"]
        for (identifier, name) in ia5Names { known[identifier] = Known(name: name, tags: [ia5String]) }
        known["1.3.6.1.5.5.7.8.5"] = Known(name: "XmppAddr", tags: [utf8String])
        return known
    }()

    /// `2.5.4.3`.
    private static func dotted(_ bytes: ArraySlice<UInt8>) throws(DERError) -> String {
        guard let last = bytes.last, last & 0x80 == 0 else { throw DERError() }
        var numbers: [UInt64] = []
        var number: UInt64 = 0
        for byte in bytes {
            guard number >> 57 == 0 else { throw DERError() }
            number = number << 7 | UInt64(byte & 0x7F)
            guard byte & 0x80 == 0 else { continue }
            if numbers.isEmpty {
                let first = min(number / 40, 2)
                numbers = [first, number - first * 40]
            } else {
                numbers.append(number)
            }
            number = 0
        }
        return numbers.map { String($0) }.joined(separator: ".")
    }
}
