import NIOSSL

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Certificates and a key, loaded and looked at: what both sides of TLS by X.509 need.
struct X509Credentials: Sendable {
    enum Side: String {
        case server
        case client
    }

    /// The files of a directory as QEMU and libnbd lay it out, or bytes in their place.
    struct Files {
        /// `ca-cert.pem`
        var authorities: CredentialFile?
        /// `ca-crl.pem`
        var revocations: CredentialFile?
        /// `server-cert.pem`, `client-cert.pem`: our own, then those between it and the authority, if any.
        var chain: CredentialFile?
        /// `server-key.pem`, `client-key.pem`
        var key: CredentialFile?

        init() {}

        init(directory: String, _ side: Side) throws(TLSCredentialError) {
            authorities = try CredentialFile(pathIfPresent: directory + "/ca-cert.pem")
            revocations = try CredentialFile(pathIfPresent: directory + "/ca-crl.pem")
            chain = try CredentialFile(pathIfPresent: directory + "/\(side)-cert.pem")
            key = try CredentialFile(pathIfPresent: directory + "/\(side)-key.pem")
        }
    }

    var authorities: [NIOSSLCertificate] = []
    var chain: [NIOSSLCertificate] = []
    var key: NIOSSLPrivateKey?
    var revocations = Revocations([], authorities: [])
    /// What is odd, but no reason to stop; each names its file.
    var warnings: [String] = []

    /// Nothing: no certificate of our own, nobody who vouches for others.
    init() {}

    /// - Parameter checksOwn: whether a mistake in our own certificates, which every peer would stumble over, is an error now.
    /// - Throws: naming the file at fault.
    init(_ files: Files, _ side: Side, checksOwn: Bool) throws(TLSCredentialError) {
        let now = Int64(time(nil))
        var authorityFacts: [CertificateFacts] = []
        if let file = files.authorities {
            (authorities, authorityFacts) = try Self.certificates(file)
            if checksOwn {
                for facts in authorityFacts { try Self.check(authority: facts, file.name, now) }
            }
        }
        if let file = files.revocations {
            guard files.authorities != nil else { throw TLSCredentialError("\(file.name): of use only with ca-cert.pem") }
            do {
                let lists = try RevocationList.all(pem: file.bytes)
                for list in lists {
                    if let next = list.nextUpdate, next < now { warnings.append("\(file.name): the list of revoked certificates is overdue") }
                    if !authorityFacts.contains(where: { Array($0.subject) == list.issuer }) {
                        warnings.append("\(file.name): a list of an authority that is not in ca-cert.pem")
                    }
                }
                revocations = Revocations(lists, authorities: authorityFacts)
            } catch {
                throw TLSCredentialError("\(file.name): not a list of revoked certificates in PEM")
            }
        }
        switch (files.chain, files.key) {
        case (nil, nil): break
        case (let chain?, nil): throw TLSCredentialError("\(chain.name) is there, but its key, \(side)-key.pem, is not")
        case (nil, let key?): throw TLSCredentialError("\(key.name) is there, but its certificate, \(side)-cert.pem, is not")
        case (let file?, let keyFile?):
            let facts: [CertificateFacts]
            (chain, facts) = try Self.certificates(file)
            if checksOwn, let own = facts.first { try Self.check(own: own, side, file.name, now, issuers: facts.dropFirst() + authorityFacts) }
            do {
                key = try NIOSSLPrivateKey(bytes: keyFile.bytes, format: .pem)
            } catch {
                throw TLSCredentialError("\(keyFile.name): not a private key in PEM without a password")
            }
        }
    }

    private static func certificates(_ file: CredentialFile) throws(TLSCredentialError) -> ([NIOSSLCertificate], [CertificateFacts]) {
        do {
            let certificates = try NIOSSLCertificate.fromPEMBytes(file.bytes)
            let facts = try certificates.map { try CertificateFacts($0.toDERBytes()) }
            guard !certificates.isEmpty else { throw DERError() }
            return (certificates, facts)
        } catch {
            throw TLSCredentialError("\(file.name): not a certificate in PEM")
        }
    }

    // MARK: Checks

    private static func check(authority facts: CertificateFacts, _ name: String, _ now: Int64) throws(TLSCredentialError) {
        try check(times: facts, "the authority's certificate", name, now)
        guard facts.isAuthority != false else {
            throw TLSCredentialError("\(name): its basic constraints say that it is not an authority's certificate")
        }
        guard facts.maySign(5) else { throw TLSCredentialError("\(name): its key usage does not allow to sign certificates") }
    }

    private static func check(
        own facts: CertificateFacts, _ side: Side, _ name: String, _ now: Int64, issuers: [CertificateFacts]
    ) throws(TLSCredentialError) {
        try check(times: facts, "the certificate", name, now)
        guard facts.isAuthority != true else {
            throw TLSCredentialError("\(name): its basic constraints say that it is an authority's certificate, not a \(side)'s")
        }
        guard facts.serves(side == .server ? CertificateFacts.serverPurpose : CertificateFacts.clientPurpose) else {
            throw TLSCredentialError("\(name): its extended key usage does not allow it for a TLS \(side)")
        }
        guard facts.maySign(0) else { throw TLSCredentialError("\(name): its key usage does not allow digital signatures") }
        guard issuers.isEmpty || issuers.contains(where: { $0.subject == facts.issuer }) else {
            throw TLSCredentialError("\(name): it was not issued by an authority in ca-cert.pem")
        }
    }

    private static func check(times facts: CertificateFacts, _ what: String, _ name: String, _ now: Int64) throws(TLSCredentialError) {
        guard facts.notBefore <= now else { throw TLSCredentialError("\(name): \(what) is not valid yet") }
        guard facts.notAfter >= now else { throw TLSCredentialError("\(name): \(what) has expired") }
    }

    /// What the peer has proved to be.
    ///
    /// - Parameter host: what its certificate must be for; nil: anything.
    /// - Throws: when it was revoked, or cannot be told not to have been.
    func peer(_ certificate: NIOSSLCertificate, host: HostName? = nil) throws(TLSRefusal) -> TLSPeer {
        do {
            let facts = try CertificateFacts(certificate.toDERBytes())
            if let host, !host.matches(facts) { throw TLSRefusal("the server's certificate is for another name") }
            switch revocations.refusal(of: facts) {
            case .revoked: throw TLSRefusal("the peer's certificate, or its authority's, has been revoked")
            case .unknownIssuer:
                throw TLSRefusal("the issuer of the peer's certificate is not in ca-cert.pem, so ca-crl.pem cannot say whether it was revoked")
            case nil: return .certificate(distinguishedName: try DistinguishedName.text(of: facts.subject))
            }
        } catch let refusal as TLSRefusal {
            throw refusal
        } catch {
            throw TLSRefusal("the peer's certificate cannot be read")
        }
    }
}
