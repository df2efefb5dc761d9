import NBDProtocol
import Testing

@testable import NBDTool

@Suite struct `A plan to encrypt` {
    private static let object = ["--object", "tls-creds-x509,id=t,dir=/x,endpoint=server"]
    private static let credentials = TLSCredentialsPlan(kind: .x509(verifiesPeer: true, checksOwn: true), directory: "/x", endpoint: .server)

    // S-TLS-01, S-SRV-02
    @Test func `requires TLS unless told otherwise`() throws {
        #expect(try servePlan(Self.object + ["--tls-creds", "t", "a"]).tls == .init(credentials: Self.credentials, policy: .required))
        #expect(
            try servePlan(Self.object + ["--tls-creds", "t", "--tls", "optional", "a"]).tls
                == .init(credentials: Self.credentials, policy: .optional))
    }

    // S-TLS-08
    @Test func `asks the object that --tls-authz names`() throws {
        let words = Self.object + ["--tls-creds", "t", "--object", "authz-simple,id=who,identity=CN=x", "--tls-authz", "who", "a"]
        #expect(try servePlan(words).tls?.authorization == .list(NameList(rules: [.init(match: "CN=x", policy: .allow)])))
    }

    @Test func `marks exports`() throws {
        let plan = try servePlan(
            Self.object + ["--tls-creds", "t", "--tls", "optional", "--export", "name=a,null=1M,tls=required", "--export", "name=b,null=1M"])
        #expect(plan.exports.map(\.requiresTLS) == [true, false])
    }

    @Test(arguments: [
        (["--tls-creds", "t"], "there are no TLS credentials 't'"), (["--tls-authz", "w"], "not permitted without --tls-creds"),
        (["--tls", "optional"], "--tls needs --tls-creds"), (["--tls-hostname", "h"], "for clients"),
        (object + ["--tls-creds", "u"], "there are no TLS credentials 'u'"),
        (object + ["--tls-creds", "t", "--tls-authz", "w"], "there is no authorization 'w'"),
        (object + ["--tls-creds", "t", "--tls", "off"], "neither required nor optional"),
        (object + ["--tls-creds", "t", "--oldstyle", ""], "oldstyle"),
        (["--object", "tls-creds-psk,id=t,dir=/x", "--tls-creds", "t"], "endpoint=server"),
    ])
    func `is refused when it makes no sense`(words: [String], reason: String) {
        let error = #expect(throws: ToolError.self) { try servePlan(words + ["a"]) }
        #expect(error?.message.contains(reason) == true, "\(String(describing: error))")
    }

    @Test func `is not forgotten`() {
        let error = #expect(throws: ToolError.self) { try servePlan(Self.object + ["a"]) }
        #expect(error?.message.contains("'t' are not used") == true)
    }

    @Test func `does not mark exports that nobody could reach`() {
        #expect(throws: ToolError.usage("export 'a' requires TLS: give --tls-creds, too")) {
            try servePlan(["--export", "name=a,null=1M,tls=required"])
        }
        #expect(throws: ToolError.self) { try servePlan(["--export", "name=a,null=1M,tls=maybe"]) }
    }
}

@Suite struct `A configuration that encrypts` {
    private func plan(_ toml: String) throws -> ServePlan {
        let text = toml + "\n[[exports]]\nname = \"a\"\nnull = \"1M\"\n"
        return try ServePlan(ServeOptions(style: .nbd), configuration: Configuration(contents: Array(text.utf8), path: "n.toml"))
    }

    @Test func `has a table for it`() throws {
        let certificates = TLSCredentialsPlan(kind: .x509(verifiesPeer: false, checksOwn: true), directory: "/x", endpoint: .server)
        #expect(
            try plan("[tls]\ndirectory = \"/x\"\nverify-peer = false\nmode = \"optional\"").tls
                == .init(credentials: certificates, policy: .optional))
        let keys = TLSCredentialsPlan(kind: .psk(username: nil), directory: "/x", endpoint: .server)
        #expect(try plan("[tls]\ncredentials = \"psk\"\ndirectory = \"/x\"").tls == .init(credentials: keys, policy: .required))
    }

    @Test(arguments: [
        ("[tls]", "'tls.directory' is missing"), ("[tls]\ndirectory = \"\"", "tls.directory is empty"),
        ("[tls]\ndirectory = \"/x\"\nmode = \"off\"", "tls.mode"), ("[tls]\ndirectory = \"/x\"\ncredentials = \"anon\"", "tls.credentials"),
        ("[tls]\ndirectory = \"/x\"\ncredentials = \"psk\"\nverify-peer = false", "tls.verify-peer"),
        ("[tls]\ndirectory = \"/x\"\nkey = 1", "unknown key 'key' in 'tls'"),
    ])
    func `is refused with the key at fault`(toml: String, reason: String) {
        let error = #expect(throws: ToolError.self) { try plan(toml) }
        #expect(error?.message.contains(reason) == true, "\(String(describing: error))")
    }
}

@Suite struct `A URI of a server that encrypts` {
    private func credentials(_ uri: String) throws {
        _ = try ClientTLSOptions.credentials(for: NBDURI(parsing: uri, allowsLocalFiles: true))
    }

    // P-URI-06
    @Test(arguments: [
        ("nbds://h/?tls-certificates=/nonexistent", "/nonexistent/ca-cert.pem: no such file"),
        ("nbds://h/?tls-psk-file=/nonexistent/k", "/nonexistent/k: no such file"), ("nbds://h/?tls-type=psk", "tls-psk-file"),
        ("nbds://h/?tls-type=anon", "anon"),
    ])
    func `names credentials, which must be there`(uri: String, reason: String) {
        let error = #expect(throws: ToolError.self) { try credentials(uri) }
        #expect(error?.message.contains(reason) == true, "\(String(describing: error))")
    }
}
