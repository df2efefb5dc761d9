/// Certificates that their issuer has taken back: `ca-crl.pem`. Spec: RFC 5280, 5.1.
///
/// As with GnuTLS, a list is believed because of where it lies, next to the certificates of the authorities: its signature and its age are
/// not what it is judged by, and one that is overdue still revokes.
struct RevocationList: Equatable, Sendable {
    /// The issuer's whole name, encoded.
    var issuer: [UInt8]
    /// When the next list was promised, in seconds since 1970.
    var nextUpdate: Int64?
    var serialNumbers: Set<[UInt8]>

    init(_ der: [UInt8]) throws(DERError) {
        var outer = DERReader(der[...])
        var list = try outer.inside(DERElement.sequence)
        var body = try list.inside(DERElement.sequence)
        _ = try body.nextIfPresent(DERElement.integer)  // version
        _ = try body.next(DERElement.sequence)  // signature algorithm
        issuer = Array(try body.next(DERElement.sequence).encoding)
        _ = try body.nextTime()
        if body.nextTag == 0x17 || body.nextTag == 0x18 { nextUpdate = try body.nextTime() }
        serialNumbers = []
        guard body.nextTag == DERElement.sequence else { return }
        var entries = try body.inside(DERElement.sequence)
        while !entries.isAtEnd {
            var entry = try entries.inside(DERElement.sequence)
            serialNumbers.insert(Array(try entry.next(DERElement.integer).content))
        }
    }

    /// - Parameter pem: one list or several.
    static func all(pem: [UInt8]) throws(DERError) -> [RevocationList] {
        var lists: [RevocationList] = []
        for der in try PEM.blocks("X509 CRL", in: pem) { lists.append(try RevocationList(der)) }
        guard !lists.isEmpty else { throw DERError() }
        return lists
    }
}

/// Whether a certificate still counts, by the lists of the authorities that are trusted.
struct Revocations: Sendable {
    enum Refusal: Equatable {
        case revoked
        /// The lists are there, but the way from the certificate to an authority leads through one that we do not have.
        case unknownIssuer
    }

    private let lists: [RevocationList]
    /// Names and serial numbers of the trusted authorities.
    private let authorities: [(subject: [UInt8], issuer: [UInt8], serialNumber: [UInt8])]

    init(_ lists: [RevocationList], authorities: [CertificateFacts]) {
        self.lists = lists
        self.authorities = authorities.map { (Array($0.subject), Array($0.issuer), Array($0.serialNumber)) }
    }

    var isEmpty: Bool { lists.isEmpty }

    /// Looks at a certificate that BoringSSL has verified, and at the authorities above it. Of several with one name each must still count.
    /// Certificates between that the peer has sent are not shown to us: with a list, all that are above the last must be in `ca-cert.pem`.
    func refusal(of certificate: CertificateFacts) -> Refusal? {
        guard !lists.isEmpty else { return nil }
        guard !isRevoked(Array(certificate.serialNumber), by: Array(certificate.issuer)) else { return .revoked }
        var waiting = [Array(certificate.issuer)]
        var seen: Set<[UInt8]> = []
        while let name = waiting.popLast() {
            guard seen.insert(name).inserted else { continue }
            let bearers = authorities.filter { $0.subject == name }
            guard !bearers.isEmpty else { return .unknownIssuer }
            for authority in bearers {
                guard !isRevoked(authority.serialNumber, by: authority.issuer) else { return .revoked }
                waiting.append(authority.issuer)
            }
        }
        return nil
    }

    private func isRevoked(_ serialNumber: [UInt8], by issuer: [UInt8]) -> Bool {
        lists.contains { $0.issuer == issuer && $0.serialNumbers.contains(serialNumber) }
    }
}
