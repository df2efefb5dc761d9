import Testing

@testable import NBDTLS

private func bytes(hex: String) -> [UInt8] {
    var rest = hex[...]
    var bytes: [UInt8] = []
    while let byte = UInt8(rest.prefix(2), radix: 16) {
        bytes.append(byte)
        rest = rest.dropFirst(2)
    }
    return bytes
}

func der(_ label: String, _ pem: String) throws -> [UInt8] { try #require(PEM.blocks(label, in: Array(pem.utf8)).first) }

@Suite struct `Distinguished names` {
    // S-TLS-08: what QEMU compares with the identities of its authz objects
    @Test(arguments: distinguishedNameGolden)
    func `are written as GnuTLS writes them`(name: String, text: String) throws {
        #expect(try DistinguishedName.text(of: bytes(hex: name)[...]) == text)
    }

    @Test func `are refused when cut anywhere`() {
        for (name, _) in distinguishedNameGolden {
            let whole = bytes(hex: name)
            for count in 0..<whole.count {
                #expect(throws: DERError.self) { try DistinguishedName.text(of: whole.prefix(count)) }
            }
        }
    }

    @Test func `of nobody are empty`() throws {
        #expect(try DistinguishedName.text(of: [0x30, 0]) == "")
    }
}

@Suite struct `Certificates` {
    @Test func `tell what matters`() throws {
        let facts = try CertificateFacts(der("CERTIFICATE", Fixtures.server))
        #expect(try DistinguishedName.text(of: facts.subject) == "O=Example,CN=server")
        #expect(try DistinguishedName.text(of: facts.issuer) == "O=Example,CN=authority")
        #expect(Array(facts.serialNumber) == [0x03, 0xE8])
        #expect(facts.notBefore == 1_577_836_800)  // 2020-01-01
        #expect(facts.notAfter == 4_070_908_800)  // 2099-01-01
        #expect(facts.isAuthority == false)
        #expect(facts.serves(CertificateFacts.serverPurpose) && !facts.serves(CertificateFacts.clientPurpose))
        #expect(facts.maySign(0) && !facts.maySign(5))
    }

    @Test func `without extensions may be used for everything`() throws {
        let facts = try CertificateFacts(der("CERTIFICATE", Fixtures.plainServer))
        #expect(facts.isAuthority == nil)
        #expect(facts.serves(CertificateFacts.clientPurpose) && facts.maySign(5))
    }

    // Nothing in a file may crash the process.
    @Test func `may be cut or bent anywhere`() throws {
        let whole = try der("CERTIFICATE", Fixtures.server)
        for count in 0..<whole.count { #expect(throws: DERError.self) { try CertificateFacts(Array(whole.prefix(count))) } }
        let list = try der("X509 CRL", Fixtures.revokesServer)
        for count in 0..<list.count { #expect(throws: DERError.self) { try RevocationList(Array(list.prefix(count))) } }
        for index in whole.indices {
            for bit: UInt8 in [1, 0x80, 0xFF] {
                var bent = whole
                bent[index] ^= bit
                if let facts = try? CertificateFacts(bent) { _ = try? DistinguishedName.text(of: facts.subject) }
            }
        }
        for index in list.indices {
            var bent = list
            bent[index] ^= 0xFF
            _ = try? RevocationList(bent)
        }
    }

    @Test(arguments: [
        ([0x17, 13], "700101000000Z", 0), ([0x17, 13], "491231235959Z", 2_524_607_999), ([0x17, 13], "500101000000Z", -631_152_000),
        ([0x18, 15], "20240229120000Z", 1_709_208_000), ([0x18, 15], "99991231235959Z", 253_402_300_799),
    ] as [([UInt8], String, Int64)])
    func `have times`(head: [UInt8], text: String, seconds: Int64) throws {
        var reader = DERReader((head + text.utf8)[...])
        #expect(try reader.nextTime() == seconds)
    }

    @Test(arguments: [
        ([0x17, 13], "701301000000Z"), ([0x17, 13], "700100000000Z"), ([0x17, 13], "7001010000000"), ([0x17, 13], "70010100000xZ"),
        ([0x18, 13], "700101000000Z"), ([0x17, 11], "7001010000Z"), ([0x18, 15], "20240229240000Z"),
    ] as [([UInt8], String)])
    func `have no other times`(head: [UInt8], text: String) {
        var reader = DERReader((head + text.utf8)[...])
        #expect(throws: DERError.self) { try reader.nextTime() }
    }
}

@Suite struct `Text around certificates` {
    @Test(arguments: [("", ""), ("TQ==", "M"), ("TWE=", "Ma"), ("TWFu", "Man"), ("TWF\n u", "Man"), ("TWFuTWE=", "ManMa")])
    func `is base64`(text: String, content: String) throws {
        let pem = "ignored\n-----BEGIN X-----\r\n\(text)\n-----END X-----\nmore"
        #expect(try PEM.blocks("X", in: Array(pem.utf8)) == [Array(content.utf8)])
    }

    @Test(arguments: ["T", "TQ", "TQ=", "TWE", "TQ==TQ==", "T*==", "===="])
    func `is refused when it is not`(text: String) {
        #expect(throws: DERError.self) { try PEM.blocks("X", in: Array("-----BEGIN X-----\n\(text)\n-----END X-----\n".utf8)) }
    }

    @Test(arguments: ["-----BEGIN X-----\nTWFu\n", "-----END X-----\n"])
    func `is refused when an end is missing`(text: String) {
        #expect(throws: DERError.self) { try PEM.blocks("X", in: Array(text.utf8)) }
    }
}

// S-TLS-07
@Suite struct `Lists of revoked certificates` {
    private func refusal(_ certificate: String, lists: [String], authorities: [String] = [Fixtures.authority]) throws -> Revocations.Refusal? {
        let all = try lists.flatMap { try RevocationList.all(pem: Array($0.utf8)) }
        let facts = try authorities.map { try CertificateFacts(der("CERTIFICATE", $0)) }
        return Revocations(all, authorities: facts).refusal(of: try CertificateFacts(der("CERTIFICATE", certificate)))
    }

    @Test func `take back what their issuer has issued`() throws {
        #expect(try refusal(Fixtures.server, lists: [Fixtures.revokesServer]) == .revoked)
        #expect(try refusal(Fixtures.server, lists: [Fixtures.revokesNobody, Fixtures.revokesServer]) == .revoked)
        #expect(try refusal(Fixtures.server, lists: [Fixtures.revokesNobody + "\n" + Fixtures.overdue]) == .revoked)
    }

    @Test func `leave others alone`() throws {
        #expect(try refusal(Fixtures.plainServer, lists: [Fixtures.revokesServer]) == nil)
        #expect(try refusal(Fixtures.server, lists: [Fixtures.listOfAnotherAuthority]) == nil)
        #expect(try refusal(Fixtures.server, lists: []) == nil)
    }

    @Test func `reach through the authorities between`() throws {
        let both = [Fixtures.authority, Fixtures.intermediate]
        #expect(try refusal(Fixtures.belowIntermediate, lists: [Fixtures.revokesNobody], authorities: both) == nil)
        #expect(try refusal(Fixtures.belowIntermediate, lists: [Fixtures.revokesIntermediate], authorities: both) == .revoked)
    }

    @Test func `need to know the authorities between`() throws {
        #expect(try refusal(Fixtures.belowIntermediate, lists: [Fixtures.revokesIntermediate]) == .unknownIssuer)
        #expect(try refusal(Fixtures.belowIntermediate, lists: []) == nil)
    }
}

// P-TLS-14
@Suite struct `The name of a server` {
    private func facts(names: [String] = [], addresses: [[UInt8]] = []) throws -> CertificateFacts {
        var facts = try CertificateFacts(der("CERTIFICATE", Fixtures.server))
        facts.names = names
        facts.hasNames = !names.isEmpty
        facts.addresses = addresses
        return facts
    }

    @Test(arguments: [
        ("disk.example.com", "disk.example.com"), ("DISK.example.com.", "disk.Example.com"), ("*.example.com", "disk.example.com"),
        ("localhost", "localhost"),
    ])
    func `is in its certificate`(pattern: String, name: String) throws {
        #expect(HostName(name).matches(try facts(names: ["other", pattern])))
    }

    @Test(arguments: [
        ("disk.example.com", "disk.example.org"), ("*.example.com", "example.com"), ("*.example.com", "a.b.example.com"),
        ("*", "localhost"), ("*.com", "example.com"), ("d*.example.com", "disk.example.com"), ("disk.*.com", "disk.example.com"),
        ("*.example.com", ".example.com"), ("", ""), ("127.0.0.1", "127.0.0.1"), ("server", "other"),
    ])
    func `is not in the certificate of another`(pattern: String, name: String) throws {
        #expect(!HostName(name).matches(try facts(names: [pattern])))
    }

    @Test func `may be an address`() throws {
        let both = try facts(names: ["h"], addresses: [[127, 0, 0, 1], [UInt8](repeating: 0, count: 15) + [1], [1, 2, 3]])
        #expect(HostName("127.0.0.1").matches(both) && HostName("::1").matches(both) && HostName("h").matches(both))
        #expect(!HostName("127.0.0.2").matches(both) && !HostName("::2").matches(both))
    }

    @Test func `is the common name when the certificate has no other`() throws {
        #expect(HostName("server").matches(try facts()))
        #expect(!HostName("server").matches(try facts(names: ["other"])))
        #expect(!HostName("authority").matches(try facts()))
    }
}
