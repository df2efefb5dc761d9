import NIOCore

/// The name or address that a server's certificate must be for. Spec: RFC 6125, 6.4; RFC 5280, 4.2.1.6.
///
/// NIOSSL's own check would do, but for a name it also accepts a certificate for the address that was connected to: whoever can point a name
/// to their own address, for which they have a certificate, would be believed.
struct HostName: Equatable {
    private let text: String
    /// nil: a name.
    private let address: SocketAddress?

    init(_ text: String) {
        self.text = text
        address = try? SocketAddress(ipAddress: text, port: 0)
    }

    func matches(_ certificate: CertificateFacts) -> Bool {
        if let address {
            return certificate.addresses.contains { (try? SocketAddress(packedIPAddress: ByteBuffer(bytes: $0), port: 0)) == address }
        }
        // As GnuTLS has it, a certificate that is for no name at all is for the common name of its subject.
        let names = certificate.hasNames ? certificate.names : certificate.commonName.map { [$0] } ?? []
        return names.contains(where: matches)
    }

    /// The first label of `pattern` may be a star, which stands for one whole label; case does not matter, nor a dot at the end.
    private func matches(_ pattern: String) -> Bool {
        let wanted = Self.labels(text)
        let offered = Self.labels(pattern)
        guard !wanted.isEmpty, wanted.count == offered.count, !wanted.contains("") else { return false }
        if offered[0] == "*" { return offered.count > 2 && offered.dropFirst() == wanted.dropFirst() }
        return offered == wanted
    }

    private static func labels(_ name: String) -> [String] {
        let text = name.hasSuffix(".") ? name.dropLast() : name[...]
        return text.lowercased().split(separator: ".", omittingEmptySubsequences: false).map(String.init)
    }
}
