import NBDProtocol
import Testing

private func parse(_ text: String) throws -> NBDURI { try NBDURI(parsing: text) }

@Suite struct `NBD URI` {
    @Test(arguments: [
        ("nbd://h", NBDURI(.tcp(host: "h", port: 10809))),
        ("NBD://h/", NBDURI(.tcp(host: "h", port: 10809))),
        ("nbds://h/x", NBDURI(.tcp(host: "h", port: 10809), exportName: "x", requiresTLS: true)),
        ("nbd+unix:///x?socket=/s", NBDURI(.unix(path: "/s"), exportName: "x")),
        ("nbds+unix:///?socket=/s", NBDURI(.unix(path: "/s"), requiresTLS: true)),
        ("nbd+vsock://3:7/x", NBDURI(.vsock(cid: 3, port: 7), exportName: "x")),
        ("nbds+vsock://", NBDURI(.vsock(cid: 2, port: 10809), requiresTLS: true)),
    ])
    func `has the schemes of the specification, and vsock`(text: String, expected: NBDURI) throws {  // P-URI-01
        #expect(try parse(text) == expected)
    }

    @Test(arguments: ["http", "nbd+ssh", "nbds+ssh", "nbdx", "", "é"])
    func `refuses other schemes by name`(scheme: String) {  // P-URI-01
        #expect(throws: NBDURIError.unknownScheme(scheme)) { try parse("\(scheme)://h/x") }
    }

    @Test(arguments: ["", "disk", "nbd:h", "nbd:/h", "/a:b//c", "://"].dropLast())
    func `is more than a name`(text: String) {
        #expect(throws: NBDURIError.notAURI) { try parse(text) }
    }

    @Test func `names a Unix socket by a parameter, abstract ones with NUL`() throws {  // P-URI-02
        #expect(try parse("nbd+unix:///?socket=/a%20b/%C3%A9%26").address == .unix(path: "/a b/é&"))
        #expect(try parse("nbd+unix://?socket=rel/a?b").address == .unix(path: "rel/a?b"))
        #expect(try parse("nbd+unix:///?socket=%00name").address == .unix(path: "\0name"))
        #expect(throws: NBDURIError.missingSocket) { try parse("nbd+unix:///x") }
        #expect(throws: NBDURIError.badParameter("socket", reason: "is empty")) { try parse("nbd+unix:///x?socket=") }
        #expect(throws: NBDURIError.badParameter("socket", reason: "is empty")) { try parse("nbd+unix:///x?socket=%00") }
        #expect(throws: NBDURIError.badText(part: "socket")) { try parse("nbd+unix:///x?socket=a%00b") }
        #expect(throws: NBDURIError.badText(part: "socket")) { try parse("nbd+unix:///x?socket=%FF") }
        #expect(throws: NBDURIError.unexpectedHost("tmp")) { try parse("nbd+unix://tmp/sock?socket=/s") }
        #expect(throws: NBDURIError.badParameter("socket", reason: "only goes with nbd+unix and nbds+unix")) {
            try parse("nbd://h/x?socket=/s")
        }
    }

    @Test(arguments: [
        ("h", "h", 10809), ("h:", "h", 10809), ("h:1", "h", 1), ("h:65535", "h", 65535), (":99", "localhost", 99), ("", "localhost", 10809),
        ("127.0.0.1:00080", "127.0.0.1", 80), ("[::1]", "::1", 10809), ("[::1]:5", "::1", 5), ("[fe80::1%25eth0]:5", "fe80::1%eth0", 5),
    ])
    func `has a host and a port, 10809 by default, IPv6 in brackets`(text: String, host: String, port: UInt16) throws {  // P-URI-03
        #expect(try parse("nbd://\(text)/x") == NBDURI(.tcp(host: host, port: port), exportName: "x"))
        #expect(try parse("nbd://\(text)").address == .tcp(host: host, port: port))
    }

    @Test(arguments: ["0", "65536", "99999999999999999999", "-1", "+1", "1a", "0x10", "%31"])
    func `refuses a port that is none`(port: String) {  // P-URI-03
        #expect(throws: NBDURIError.badPort(port)) { try parse("nbd://h:\(port)/x") }
    }

    @Test(arguments: ["::1", "1:2:3", "[::1", "[::1]5", "[h]", "a%2Fb", "%20"])
    func `refuses a host that is none`(host: String) {  // P-URI-03
        #expect(throws: NBDURIError.badHost(host)) { try parse("nbd://\(host)/x") }
    }

    @Test(arguments: [
        ("nbd://h/disk", "disk"), ("nbd://h//disk", "/disk"), ("nbd://h", ""), ("nbd://h/", ""), ("nbd://h/a/b/", "a/b/"),
        ("nbd://h/a%2Fb%20c%3F%23", "a/b c?#"), ("nbd://h/a+b", "a+b"), ("nbd://h/%e2%82%AC€", "€€"), ("nbd://h/a@b:c", "a@b:c"),
        ("nbd://h/%0A", "\n"),
    ])
    func `names the export by its path without the first slash`(text: String, name: String) throws {  // P-URI-04
        #expect(try parse(text).exportName == name)
    }

    @Test(arguments: ["%", "%4", "%zz", "%4g", "a%"])
    func `refuses broken percent-encoding`(name: String) {
        #expect(throws: NBDURIError.self) { try parse("nbd://h/\(name)") }
    }

    @Test func `refuses names that no server can have`() {  // P-GEN-01
        #expect(throws: NBDURIError.badText(part: "export name")) { try parse("nbd://h/%00") }
        #expect(throws: NBDURIError.badText(part: "export name")) { try parse("nbd://h/%FF") }
        #expect(throws: NBDURIError.badText(part: "export name")) { try parse("nbd://h/" + String(repeating: "x", count: 4097)) }
        #expect(throws: Never.self) { try parse("nbd://h/" + String(repeating: "x", count: 4096)) }
        #expect(throws: NBDURIError.badCharacter(at: 9)) { try parse("nbd://h/a b") }
        #expect(throws: NBDURIError.fragment) { try parse("nbd://h/a#b") }
    }

    @Test func `has a user name`() throws {  // P-URI-05
        #expect(try parse("nbds://al%40ice@h/x").user == "al@ice")
        #expect(try parse("nbds+unix://bob@/x?socket=/s").user == "bob")
        #expect(try parse("nbd://h/x@y").user == nil)
        #expect(throws: NBDURIError.badText(part: "user name")) { try parse("nbd://a%0Ab@h/") }
    }

    @Test func `has TLS parameters, but none that opens local files`() throws {  // P-URI-06
        let uri = try parse("nbds://h/x?tls-type=psk&tls-hostname=a.b&tls-verify-peer=0")
        #expect(uri.tls == NBDURI.TLSParameters(kind: .psk, hostname: "a.b", verifiesPeer: false))
        for bad in ["tls-type=ssl", "tls-type", "tls-hostname=", "tls-verify-peer=yes", "tls-certificates=/c", "tls-psk-file=/k"] {  // the last two: see below
            let error = #expect(throws: NBDURIError.self) { try parse("nbds://h/x?\(bad)") }
            guard case .badParameter(let name, _)? = error else { throw error ?? .notAURI }
            #expect(bad.hasPrefix(name))
        }
    }

    @Test func `names local files when whoever reads it allows that`() throws {  // P-URI-06
        let uri = try NBDURI(parsing: "nbds://h/?tls-certificates=/c%20d&tls-psk-file=/k&tls-verify-peer=true", allowsLocalFiles: true)
        #expect(uri.tls == NBDURI.TLSParameters(verifiesPeer: true, certificates: "/c d", preSharedKeys: "/k"))
        #expect(try NBDURI(parsing: uri.description, allowsLocalFiles: true) == uri)
        #expect(throws: NBDURIError.self) { try NBDURI(parsing: uri.description) }
        #expect(throws: NBDURIError.self) { try NBDURI(parsing: "nbds://h/?tls-certificates=", allowsLocalFiles: true) }
    }

    @Test func `diagnoses unknown and repeated parameters by name`() throws {  // P-URI-07
        #expect(throws: NBDURIError.unknownParameter("sokcet")) { try parse("nbd+unix:///x?sokcet=/s") }
        #expect(throws: NBDURIError.badText(part: "name of a parameter")) { try parse("nbd://h/x?a%1Bb") }
        #expect(throws: NBDURIError.repeatedParameter("socket")) { try parse("nbd+unix:///x?socket=/s&socket=/t") }
        #expect(try parse("nbd://h/x?x-foo=1&x-foo=%zz&&x-").exportName == "x")
        #expect(NBDURIError.unknownParameter("sokcet").description == "unknown parameter 'sokcet' in the URI")
    }

    @Test(arguments: [
        ("nbd://localhost:10809/", NBDURI(.tcp(host: "localhost", port: 10809))),
        ("nbds://[::1]:5/a/b%20c", NBDURI(.tcp(host: "::1", port: 5), exportName: "a/b c", requiresTLS: true)),
        ("nbd+unix:///100%25?socket=/tmp/s%26%3D", NBDURI(.unix(path: "/tmp/s&="), exportName: "100%")),
        ("nbd+unix:///?socket=%00name", NBDURI(.unix(path: "\0name"))),
        ("nbd+vsock://2:10809/", NBDURI(.vsock(cid: 2, port: 10809))),
    ])
    func `is printed with names percent-encoded`(text: String, uri: NBDURI) throws {  // P-URI-08
        #expect(uri.description == text)
        #expect(try parse(text) == uri)
    }

    @Test func `prints what parses to the same value, whatever the names are`() throws {
        var random = SeededRandom()
        for _ in 0..<2000 {
            let port = UInt16.random(in: 1...65535, using: &random)
            let address: NBDURI.Address =
                switch Int.random(in: 0..<4, using: &random) {
                case 0: .tcp(host: "h" + random.text(0...5).filter { !":/".contains($0) && !$0.isWhitespace && $0 != "\u{7F}" }, port: port)
                case 1: .tcp(host: "fe80::\(port)", port: port)
                case 2: .unix(path: (Bool.random(using: &random) ? "\0" : "/") + random.text(1...9))
                default: .vsock(cid: .random(in: 0...UInt32.max, using: &random), port: .random(in: 0...UInt32.max, using: &random))
                }
            var uri = NBDURI(address, exportName: random.text(0...20), requiresTLS: Bool.random(using: &random))
            if Bool.random(using: &random) { uri.tls = NBDURI.TLSParameters(kind: .x509, hostname: "a&b", verifiesPeer: true) }
            #expect((try? parse(uri.description)) == uri, "\(uri), seed \(random.seed)")
        }
    }

    @Test func `never traps on any text`() {
        var random = SeededRandom()
        let pieces = [
            "nbd", "+unix", "s", "://", "[", "]", ":", "@", "/", "?", "&", "=", "%", "%00", "%C3", "socket", "tls-type", "#", "9", "é",
            "\0",
        ]
        for _ in 0..<20_000 {
            let text = (0..<Int.random(in: 0...12, using: &random)).map { _ in pieces.randomElement(using: &random) ?? "" }.joined()
            if let uri = try? parse(text) { #expect((try? parse(uri.description)) == uri, "\(text), seed \(random.seed)") }
            if let uri = try? parse("nbd://" + text) { #expect((try? parse(uri.description)) == uri, "\(text), seed \(random.seed)") }
            if let uri = try? parse("nbd+unix://" + text) { #expect((try? parse(uri.description)) == uri, "\(text), seed \(random.seed)") }
        }
    }
}
