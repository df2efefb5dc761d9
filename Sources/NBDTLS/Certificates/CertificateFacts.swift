/// What we want to know of a certificate beyond what BoringSSL checks by itself. Spec: RFC 5280, 4.1 and 4.2.
struct CertificateFacts: Equatable {
    /// The whole names, encoded: equal names are equal bytes.
    var subject: ArraySlice<UInt8>
    var issuer: ArraySlice<UInt8>
    var serialNumber: ArraySlice<UInt8>
    /// Seconds since 1970.
    var notBefore: Int64
    var notAfter: Int64
    /// nil: basic constraints are not there.
    var isAuthority: Bool?
    /// nil: everything. Bit 0 is the highest bit of the first byte.
    var keyUsage: ArraySlice<UInt8>?
    /// nil: everything. Encoded object identifiers.
    var purposes: [[UInt8]]?
    /// Of the subject alternative name: DNS names, and addresses of 4 or 16 bytes.
    var names: [String] = []
    var addresses: [[UInt8]] = []
    /// Whether there are DNS names, readable or not.
    var hasNames = false

    /// - Parameter der: one certificate.
    init(_ der: [UInt8]) throws(DERError) {
        var outer = DERReader(der[...])
        var certificate = try outer.inside(DERElement.sequence)
        var body = try certificate.inside(DERElement.sequence)
        _ = try body.nextIfPresent(DERElement.context(0))  // version
        serialNumber = try body.next(DERElement.integer).content
        _ = try body.next(DERElement.sequence)  // signature algorithm
        issuer = try body.next(DERElement.sequence).encoding
        var validity = try body.inside(DERElement.sequence)
        notBefore = try validity.nextTime()
        notAfter = try validity.nextTime()
        subject = try body.next(DERElement.sequence).encoding
        _ = try body.next(DERElement.sequence)  // public key
        while !body.isAtEnd {
            let element = try body.next()
            guard element.tag == DERElement.context(3) else { continue }
            var wrapped = DERReader(element.content)
            var extensions = try wrapped.inside(DERElement.sequence)
            while !extensions.isAtEnd { try take(extension: try extensions.inside(DERElement.sequence)) }
        }
    }

    private mutating func take(extension reader: DERReader) throws(DERError) {
        var reader = reader
        let identifier = Array(try reader.next(DERElement.objectIdentifier).content)
        _ = try reader.nextIfPresent(DERElement.boolean)  // critical
        var value = DERReader(try reader.next(DERElement.octetString).content)
        switch identifier {
        case Self.basicConstraints:
            var constraints = try value.inside(DERElement.sequence)
            let flag = try constraints.nextIfPresent(DERElement.boolean)
            isAuthority = flag.map { $0.content.first != 0 } ?? false
        case Self.keyUsageExtension:
            keyUsage = try value.next(DERElement.bitString).content.dropFirst()  // the count of unused bits
        case Self.extendedKeyUsage:
            var list = try value.inside(DERElement.sequence)
            var purposes: [[UInt8]] = []
            while !list.isAtEnd { purposes.append(Array(try list.next(DERElement.objectIdentifier).content)) }
            self.purposes = purposes
        case Self.alternativeName:
            var list = try value.inside(DERElement.sequence)
            while !list.isAtEnd {
                let name = try list.next()
                if name.tag == 0x82 {
                    hasNames = true
                    if let text = String(validating: name.content, as: UTF8.self) { names.append(text) }
                } else if name.tag == 0x87 {
                    addresses.append(Array(name.content))
                }
            }
        default: break
        }
    }

    private static let basicConstraints: [UInt8] = [0x55, 0x1D, 0x13]  // 2.5.29.19
    private static let alternativeName: [UInt8] = [0x55, 0x1D, 0x11]  // 2.5.29.17
    private static let keyUsageExtension: [UInt8] = [0x55, 0x1D, 0x0F]  // 2.5.29.15
    private static let extendedKeyUsage: [UInt8] = [0x55, 0x1D, 0x25]  // 2.5.29.37
    private static let anyPurpose: [UInt8] = [0x55, 0x1D, 0x25, 0x00]
    static let serverPurpose: [UInt8] = [0x2B, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01]  // 1.3.6.1.5.5.7.3.1
    static let clientPurpose: [UInt8] = [0x2B, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02]

    /// Of the subject; the last one counts.
    var commonName: String? {
        var outer = DERReader(subject)
        guard var sets = try? outer.inside(DERElement.sequence) else { return nil }
        var name: String?
        while var members = try? sets.inside(DERElement.set) {
            while var member = try? members.inside(DERElement.sequence) {
                guard let type = try? member.next(DERElement.objectIdentifier), let value = try? member.next() else { return nil }
                if Array(type.content) == [0x55, 0x04, 0x03] { name = String(validating: value.content, as: UTF8.self) }
            }
        }
        return name
    }

    func serves(_ purpose: [UInt8]) -> Bool {
        purposes.map { $0.contains(purpose) || $0.contains(Self.anyPurpose) } ?? true
    }

    /// Bit 0: digitalSignature; bit 2: keyEncipherment; bit 5: keyCertSign.
    func maySign(_ bit: Int) -> Bool {
        guard let keyUsage else { return true }
        guard let byte = keyUsage.first else { return false }
        return byte & (0x80 >> bit) != 0
    }
}
