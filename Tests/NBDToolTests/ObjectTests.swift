import Testing

@testable import NBDTool

@Suite struct `Objects of the command line` {
    @Test(arguments: ["tls-creds-x509,id=tls0,dir=/a,,b,endpoint=server", "qom-type=tls-creds-x509,endpoint=server,dir=/a,,b,id=tls0"])
    func `begin with their type and have an id`(text: String) throws {
        var object = try ObjectDefinition(parsing: text)
        #expect(object.type == "tls-creds-x509")
        #expect(object.id == "tls0")
        #expect(object.keys.take("dir") == "/a,b")
        #expect(object.keys.take("endpoint") == "server")
        try object.keys.finish()
    }

    @Test(arguments: [
        "", ",", "id=a", "tls-creds-x509", "tls-creds-x509,", "tls-creds-x509,dir=/x", "tls-creds-x509,id=", "tls-creds-x509,id=0a,dir=/x",
        "tls-creds-x509,id=a b,dir=/x", "tls-creds-x509,id=a,id=b", "{\"qom-type\":\"tls-creds-x509\"}", "a,id", "secret,id=a,data=x",
    ])
    func `are refused when malformed`(text: String) {
        #expect(throws: ToolError.self) { try ToolObject.all([text]) }
    }

    @Test func `have ids of their own`() {
        let text = "tls-creds-psk,id=a,dir=/x"
        #expect(throws: ToolError.usage("--object: id 'a' is given twice")) { try ToolObject.all([text, text]) }
    }

    @Test func `name the object whose key nobody knows`() {
        #expect(throws: ToolError.usage("--object tls-creds-psk,id=a: unknown key 'colour'")) {
            try ToolObject.all(["tls-creds-psk,id=a,dir=/x,colour=red"])
        }
    }
}

// S-TLS-09
@Suite struct `Objects for TLS credentials` {
    private func plan(_ text: String) throws -> TLSCredentialsPlan? {
        guard case .tlsCredentials(let plan)? = try ToolObject.all([text])["a"] else { return nil }
        return plan
    }

    @Test func `are certificates in a directory, of a client unless told otherwise`() throws {
        let client = TLSCredentialsPlan(kind: .x509(verifiesPeer: true, checksOwn: true), directory: "/x", endpoint: .client)
        #expect(try plan("tls-creds-x509,id=a,dir=/x") == client)
        let server = TLSCredentialsPlan(kind: .x509(verifiesPeer: false, checksOwn: false), directory: "/x", endpoint: .server)
        #expect(try plan("tls-creds-x509,id=a,dir=/x,endpoint=server,verify-peer=off,sanity-check=no,priority=NORMAL") == server)
    }

    @Test func `are keys that both sides know`() throws {
        let client = TLSCredentialsPlan(kind: .psk(username: "alice"), directory: "/x", endpoint: .client)
        #expect(try plan("tls-creds-psk,id=a,dir=/x,username=alice") == client)
        let server = TLSCredentialsPlan(kind: .psk(username: nil), directory: "/x", endpoint: .server)
        #expect(try plan("tls-creds-psk,id=a,dir=/x,endpoint=server") == server)
    }

    @Test(arguments: [
        ("tls-creds-anon,id=a,endpoint=server", "anonymous"), ("tls-creds-x509,id=a", "'dir' is missing"),
        ("tls-creds-x509,id=a,dir=/x,endpoint=both", "'endpoint'"), ("tls-creds-x509,id=a,dir=/x,priority=SECURE256", "'priority'"),
        ("tls-creds-x509,id=a,dir=/x,passwordid=s", "'passwordid'"), ("tls-creds-psk,id=a,dir=/x,verify-peer=off", "'verify-peer'"),
        ("tls-creds-psk,id=a,dir=/x,sanity-check=on", "'sanity-check'"), ("tls-creds-x509,id=a,dir=/x,username=u", "'username'"),
    ])
    func `say what they cannot be`(text: String, word: String) throws {
        let error = try #require(throws: ToolError.self) { try plan(text) }
        #expect(error.message.contains(word))
        #expect(error.message.contains("id=a"))
    }
}
