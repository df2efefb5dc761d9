import Glibc
import Testing

@testable import NBDTLS

/// A directory of credentials that goes when the test does.
private final class Directory {
    let path: String

    init(_ files: [String: String]) throws {
        path = "/tmp/nbdtls-\(UInt64.random(in: .min ... .max))"
        mkdir(path, 0o700)
        for (name, text) in files { try write(name, text) }
    }

    func write(_ name: String, _ text: String) throws {
        let file = try #require(fopen(path + "/" + name, "w"))
        fputs(text, file)
        fclose(file)
    }

    deinit {
        for name in ["ca-cert.pem", "ca-crl.pem", "server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem", "keys.psk"] {
            unlink(path + "/" + name)
        }
        rmdir(path)
    }
}

@Suite struct `Credentials of a server` {
    private let good = ["ca-cert.pem": Fixtures.authority, "server-cert.pem": Fixtures.server, "server-key.pem": Fixtures.key]

    private func load(_ changes: [String: String?], verifiesPeer: Bool = true, checksOwn: Bool = true) throws -> TLSServerCredentials {
        var files = good
        for (name, text) in changes { files[name] = text }
        let directory = try Directory(files)
        return try TLSServerCredentials(directory: directory.path, verifiesPeer: verifiesPeer, checksOwn: checksOwn)
    }

    @Test func `are the files of QEMU's directories`() throws {
        #expect(try load([:]).warnings == [])
        #expect(try load(["ca-crl.pem": Fixtures.revokesNobody]).warnings == [])
        _ = try load(["ca-cert.pem": String?.none], verifiesPeer: false)
        _ = try load(["server-cert.pem": Fixtures.belowIntermediate + "\n" + Fixtures.intermediate])
        _ = try load([:]).makeSession()
    }

    @Test func `may be bytes`() throws {
        let credentials = try TLSServerCredentials(
            certificateChain: Array(Fixtures.server.utf8), privateKey: Array(Fixtures.key.utf8), authorities: Array(Fixtures.authority.utf8),
            revocations: Array(Fixtures.overdue.utf8))
        #expect(credentials.warnings == ["list of revoked certificates: the list of revoked certificates is overdue"])
        _ = try credentials.makeSession()
    }

    @Test(arguments: [
        ("ca-cert.pem", nil, "ca-cert.pem: no such file"), ("server-cert.pem", nil, "server-cert.pem: no such file"),
        ("server-key.pem", nil, "its key, server-key.pem, is not"), ("ca-cert.pem", "x", "ca-cert.pem: not a certificate in PEM"),
        ("server-cert.pem", Fixtures.key, "server-cert.pem: not a certificate in PEM"),
        ("server-key.pem", Fixtures.server, "server-key.pem: not a private key in PEM"),
        ("server-key.pem", Fixtures.encryptedKey, "server-key.pem: not a private key in PEM without a password"),
        ("server-key.pem", Fixtures.otherKey, "server-key.pem: does not belong to the certificate"),
        ("ca-crl.pem", "x", "ca-crl.pem: not a list of revoked certificates"),
        ("ca-crl.pem", Fixtures.authority, "ca-crl.pem: not a list of revoked certificates"),
        ("server-cert.pem", String(repeating: "x", count: (1 << 20) + 1), "server-cert.pem: larger than"),
    ] as [(String, String?, String)])
    func `are refused with the name of the file`(name: String, text: String?, reason: String) throws {
        let error = try #require(throws: TLSCredentialError.self) { try load([name: text]) }
        #expect(error.description.contains(reason), "\(error)")
    }

    // S-TLS-09: every client would stumble over these
    @Test(arguments: [
        ("ca-cert.pem", Fixtures.expiredAuthority, "has expired"), ("ca-cert.pem", Fixtures.authorityThatIsNone, "not an authority's"),
        ("ca-cert.pem", Fixtures.authorityThatMayNotSign, "does not allow to sign certificates"),
        ("server-cert.pem", Fixtures.expired, "has expired"), ("server-cert.pem", Fixtures.notYet, "not valid yet"),
        ("server-cert.pem", Fixtures.forClients, "does not allow it for a TLS server"),
        ("server-cert.pem", Fixtures.authorityAsServer, "is an authority's certificate"),
        ("server-cert.pem", Fixtures.mayNotSign, "does not allow digital signatures"),
        ("server-cert.pem", Fixtures.ofAnotherAuthority, "not issued by an authority in ca-cert.pem"),
    ])
    func `are looked at before clients come, unless that is off`(name: String, text: String, reason: String) throws {
        let error = try #require(throws: TLSCredentialError.self) { try load([name: text]) }
        #expect(error.description.contains("\(name): ") && error.description.contains(reason), "\(error)")
        // BoringSSL does not even take one that may not sign.
        if text != Fixtures.mayNotSign { _ = try load([name: text], checksOwn: false) }
    }

    @Test func `warn of lists that are odd`() throws {
        #expect(try load(["ca-crl.pem": Fixtures.overdue]).warnings.count == 1)
        #expect(try load(["ca-crl.pem": Fixtures.listOfAnotherAuthority]).warnings.count == 1)
    }

    @Test func `are not there without a list of revoked certificates that a link has lost`() throws {
        let directory = try Directory(good)
        try #require(symlink("gone.pem", directory.path + "/ca-crl.pem") == 0)
        #expect(throws: TLSCredentialError("\(directory.path)/ca-crl.pem: leads to a file that is not there")) {
            try TLSServerCredentials(directory: directory.path)
        }
        try directory.write("gone.pem", Fixtures.revokesNobody)
        defer { unlink(directory.path + "/gone.pem") }
        #expect(try TLSServerCredentials(directory: directory.path).warnings == [])
    }

    @Test func `can be replaced`() throws {
        let store = TLSCredentialStore(TLSServerCredentials(preSharedKeys: { _ in nil }))
        store.replace(with: try load(["ca-crl.pem": Fixtures.overdue]))
        #expect(store.current.warnings.count == 1)
    }
}

@Suite struct `Credentials of a client` {
    @Test func `are an authority, and a certificate if there is one`() throws {
        let bare = try Directory(["ca-cert.pem": Fixtures.authority])
        _ = try TLSClientCredentials(directory: bare.path).makeSession(hostname: "h", isAddress: false)
        let full = try Directory(["ca-cert.pem": Fixtures.authority, "client-cert.pem": Fixtures.plainServer, "client-key.pem": Fixtures.key])
        _ = try TLSClientCredentials(directory: full.path).makeSession(hostname: nil, isAddress: false)
        _ = try TLSClientCredentials.unverified.makeSession(hostname: "127.0.0.1", isAddress: true)
    }

    @Test func `are refused without an authority, or with half a certificate`() throws {
        let empty = try Directory([:])
        #expect(throws: TLSCredentialError.self) { try TLSClientCredentials(directory: empty.path) }
        let half = try Directory(["ca-cert.pem": Fixtures.authority, "client-key.pem": Fixtures.key])
        #expect(throws: TLSCredentialError.self) { try TLSClientCredentials(directory: half.path) }
    }

    @Test(arguments: ["", "a\0b", String(repeating: "a", count: 300)])
    func `cannot look for a name that is none`(name: String) throws {
        #expect(throws: TLSCredentialError.self) { try TLSClientCredentials.unverified.makeSession(hostname: name, isAddress: false) }
    }

    @Test func `may be a key`() throws {
        _ = try TLSClientCredentials(user: "alice", key: [1]).makeSession(hostname: "h", isAddress: false)
        for (user, count) in [("", 1), ("a\0b", 1), (String(repeating: "u", count: 129), 1), ("a", 0), ("a", 257)] {
            #expect(throws: TLSCredentialError.self) { try TLSClientCredentials(user: user, key: [UInt8](repeating: 1, count: count)) }
        }
    }
}

@Suite struct `Keys that both sides know` {
    private func keys(_ text: String) throws -> PreSharedKeys { try PreSharedKeys(CredentialFile(name: "k", bytes: Array(text.utf8))) }

    @Test func `are lines of user and key`() throws {
        let keys = try keys("# comment\nalice:00ff\r\nbo:b:Ab\n\nalice:11\n")
        #expect(keys["alice"] == [0, 0xFF])
        #expect(keys["bo:b"] == [0xAB])
        #expect(keys["carol"] == nil)
    }

    @Test(arguments: [
        ("", "k: no keys"), ("# alice:00\n", "k: no keys"), ("a:00\nalice\n", "k: line 2"), (":00", "k: line 1"), ("alice:", "k: line 1"),
        ("alice:0", "k: line 1"), ("alice:0x", "k: line 1"), ("alice: 00", "k: line 1"), (String(repeating: "u", count: 129) + ":00", "k: line 1"),
        ("alice:" + String(repeating: "00", count: 257), "k: line 1"),
    ])
    func `are refused by line, and never shown`(text: String, place: String) throws {
        let error = try #require(throws: TLSCredentialError.self) { try keys(text) }
        #expect(error.description.hasPrefix(place))
        #expect(!error.description.contains("00"))
    }

    @Test func `come from a file`() throws {
        let directory = try Directory(["keys.psk": "alice:00ff\n"])
        _ = try TLSServerCredentials(preSharedKeyDirectory: directory.path).makeSession()
        _ = try TLSClientCredentials(user: "alice", preSharedKeyFile: directory.path + "/keys.psk")
        #expect(throws: TLSCredentialError.self) { try TLSClientCredentials(user: "bob", preSharedKeyFile: directory.path + "/keys.psk") }
        let nowhere = try Directory([:])
        #expect(throws: TLSCredentialError("\(nowhere.path)/keys.psk: no such file")) {
            try TLSServerCredentials(preSharedKeyDirectory: nowhere.path)
        }
    }
}
