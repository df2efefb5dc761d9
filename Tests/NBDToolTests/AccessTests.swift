import Logging
import NBDServer
import Testing

@testable import NBDTool

@Suite struct `Rules on the command line` {
    @Test func `say which clients may do what with which exports`() throws {
        let rule = try AccessRule(
            parsing: "export=backup-*,from=10.0.0.0/8+::1+unix,uid=1000+1001,gid=100,pid=7,may=read+contexts", option: "--allow")
        #expect(rule.exports == Glob("backup-*"))
        #expect(rule.origins == [.network(try #require(IPNetwork("10.0.0.0/8"))), .network(try #require(IPNetwork("::1"))), .unix])
        #expect(rule.uids == [1000, 1001])
        #expect(rule.gids == [100])
        #expect(rule.pids == [7])
        #expect(rule.permissions == [.read, .contexts])
        let tls = try AccessRule(parsing: "tls=on,tls-dn=CN=a,,O=*,may=all", option: "--allow")
        #expect(tls.usesTLS == true)
        #expect(tls.distinguishedName == Glob("CN=a,O=*"))
        #expect(tls.permissions == .all)
        #expect(tls.exports == .everything)
        #expect(try AccessRule(parsing: "tls-user=alice", option: "--deny").permissions == .all)
    }

    @Test(
        arguments: [
            ("export=a", "'may' is missing"), ("may=", "made of list, read"), ("may=fly", "not 'fly'"), ("may=read+", "not ''"),
            ("may=read,from=10.0.0.1/8", "'from'"), ("may=read,from=localhost", "not 'localhost'"), ("may=read,from=", "not ''"),
            ("may=read,uid=root", "not 'root'"), ("may=read,uid=-1", "'uid'"), ("may=read,uid=4294967296", "'uid'"), ("may=read,uid=+1", "'uid'"),
            ("may=read,colour=red", "unknown key 'colour'"), ("may=read,tls=maybe", "on or off"), ("", "expected key=value"),
            ("may=read,from=10.0.0.0/8,uid=0", "Unix sockets only"), ("may=read,tls=off,tls-dn=CN=a", "no TLS identity"),
            ("may=read,tls-user=a,tls-dn=CN=a", "not both"), ("may=read,may=write", "given twice"),
        ])
    func `are refused with a reason`(text: String, reason: String) {
        let error = #expect(throws: ToolError.self) { try AccessRule(parsing: text, option: "--allow") }
        #expect(error?.kind == .usage)
        #expect(error?.message.contains(reason) == true, "\(error?.message ?? "")")
    }

    @Test func `are denied to be denials alone`() {
        #expect(refusal { try servePlan(["a", "--deny", "uid=0"]) }.contains("without --allow, nobody may do anything"))
    }

    @Test func `warn of a pattern that fits no export`() throws {
        let plan = try servePlan(["-x", "disk", "a", "--allow", "export=dsik,may=all", "--allow", "export=d*,may=read"])
        #expect(plan.access.warnings(exports: plan.exports.map(\.name)) == [
            "a rule to allow something fits no export: there is none called 'dsik'"
        ])
    }

    @Test func `add up with those of the configuration`() throws {
        let toml = """
            user = "nbd"
            sandbox = "require"
            [tls]
            directory = "/x"
            [limits]
            connections-per-peer = 5
            handshakes = 6
            handshakes-per-peer = 4
            stall = 3
            progress = 2
            peer-silence = 1
            [[exports]]
            name = "disk"
            memory = "1M"
            [[allow]]
            export = "disk"
            from = ["10.0.0.0/8", "unix"]
            may = "read"
            [[allow]]
            uid = 1000
            gid = [5, 6]
            tls = false
            may = ["list", "write"]
            [[deny]]
            tls-dn = "CN=bad,*"
            """
        let plan = try servePlan(
            ["--allow", "may=list", "--sandbox", "off"],
            configuration: Configuration(contents: Array(toml.utf8), path: "a.toml"))
        #expect(plan.access.allowed.map(\.permissions) == [.read, [.list, .write], .list])
        #expect(plan.access.allowed[0].origins.count == 2)
        #expect(plan.access.allowed[1].uids == [1000])
        #expect(plan.access.allowed[1].gids == [5, 6])
        #expect(plan.access.allowed[1].usesTLS == false)
        #expect(plan.access.denied.map(\.permissions) == [.all])
        #expect(plan.access.denied[0].distinguishedName == Glob("CN=bad,*"))
        #expect(plan.access.user == "nbd")
        #expect(plan.access.sandbox == .off)
        #expect(plan.server.peerConnectionLimit == 5)
        #expect(plan.server.handshakeCountLimit == 6)
        #expect(plan.server.peerHandshakeCountLimit == 4)
        #expect(plan.server.stallLimit == .seconds(3))
        #expect(plan.server.progressLimit == .seconds(2))
        #expect(plan.server.peerTimeLimit == .seconds(1))
    }

    @Test(
        arguments: [
            ("[[allow]]\nexport = \"a\"", "allow[0]: 'may' is missing"), ("[[allow]]\nmay = \"fly\"", "allow[0].may"),
            ("[[allow]]\nmay = []", "'allow[0].may': is empty"), ("[[allow]]\nmay = \"read\"\nuid = \"root\"", "allow[0].uid"),
            ("[[allow]]\nmay = \"read\"\nuid = -1", "'allow[0].uid': expected a number"),
            ("[[deny]]\nfrom = [\"x\"]", "deny[0].from"),
            ("[[deny]]\ncolour = \"red\"", "unknown key 'colour'"), ("sandbox = \"maybe\"", "sandbox"),
            ("[limits]\nhandshakes = -1", "limits.handshakes"),
        ])
    func `of a configuration are refused with their place`(toml: String, place: String) {
        let message = refusal { try servePlan(["a"], configuration: Configuration(contents: Array(toml.utf8), path: "a.toml")) }
        #expect(message.contains(place), "\(message)")
    }

    // A rule to deny something that no client can fit would let everybody through.
    @Test(
        arguments: [
            ([], "tls=on", "'tls' fits nobody: without --tls-creds"), ([], "tls-dn=CN=x", "'tls-dn' fits nobody: without --tls-creds"),
            ([], "tls-user=x", "'tls-user' fits nobody: without --tls-creds"),
            (["tls-creds-x509,id=t,dir=/x,endpoint=server"], "tls-user=x", "'tls-user' fits nobody: the server's credentials are certificates"),
            (["tls-creds-x509,id=t,dir=/x,endpoint=server,verify-peer=off"], "tls-dn=CN=x", "'tls-dn' fits nobody: with verify-peer=off"),
            (["tls-creds-psk,id=t,dir=/x,endpoint=server"], "tls-dn=CN=x", "'tls-dn' fits nobody: the server's credentials are pre-shared keys"),
        ] as [([String], String, String)])
    func `are refused when TLS as it is cannot prove what they are about`(objects: [String], condition: String, reason: String) {
        let tls = objects.flatMap { ["--object", $0, "--tls-creds", "t"] }
        #expect(refusal { try servePlan(["a", "--allow", "may=all", "--deny", condition] + tls) }.contains("--deny '\(condition)': \(reason)"))
        let allow = condition + ",may=read"
        #expect(refusal { try servePlan(["a", "--allow", allow] + tls) }.contains("--allow '\(allow)': \(reason)"))
        // The same of a file, whose credentials the command line may have replaced.
        let (key, value) = (condition.prefix { $0 != "=" }, condition.drop { $0 != "=" }.dropFirst())
        let toml = "[[allow]]\nmay = \"all\"\n[[deny]]\n\(key) = \(key == "tls" ? "true" : "\"\(value)\"")\n"
        let message = refusal { try servePlan(["a"] + tls, configuration: Configuration(contents: Array(toml.utf8), path: "a.toml")) }
        #expect(message.contains("the configuration's deny[0]: \(reason)"), "\(message)")
    }

    @Test func `may be about what TLS proves`() throws {
        let x509 = ["--object", "tls-creds-x509,id=t,dir=/x,endpoint=server", "--tls-creds", "t"]
        let psk = ["--object", "tls-creds-psk,id=t,dir=/x,endpoint=server", "--tls-creds", "t"]
        _ = try servePlan(["a", "--allow", "tls=on,tls-dn=CN=x,may=all", "--deny", "tls=off"] + x509)
        _ = try servePlan(["a", "--allow", "tls-user=x,may=all"] + psk)
        _ = try servePlan(["a", "--allow", "tls=on,may=all"] + ["--object", "tls-creds-x509,id=t,dir=/x,endpoint=server,verify-peer=off", "--tls-creds", "t"])
        _ = try servePlan(["a", "--allow", "may=all", "--deny", "tls=off,may=write"])
    }

    // S-TLS-08, P-TLS-08
    @Test func `decide about clients in clear without asking --tls-authz`() throws {
        let gate = try TLSAuthorization(.list(NameList(rules: [.init(match: "CN=good", policy: .allow)])), logger: Logger(label: "test"))
        let clear = PeerIdentity(address: .unix, unix: .init(uid: 1, gid: 1, pid: 1))
        func encrypted(_ name: String) -> PeerIdentity {
            var peer = clear
            peer.tls = .certificate(distinguishedName: name)
            return peer
        }
        let object = ["--object", "tls-creds-x509,id=t,dir=/x,endpoint=server", "--tls-creds", "t", "--tls", "optional", "a"]
        let open = try #require(servePlan(object).access.authorizer(gate))
        #expect(open.admits(clear) && open.admits(encrypted("CN=good")) && !open.admits(encrypted("CN=bad")))
        #expect(open.permissions(of: clear, for: "") == .all)
        let rules = try #require(servePlan(object + ["--allow", "uid=2,may=read"]).access.authorizer(gate))
        #expect(!rules.admits(clear) && !rules.greets(clear) && !rules.admits(encrypted("CN=good")))
        #expect(try servePlan(object).access.authorizer(nil) == nil)
    }

    // An empty array must not be everybody.
    @Test(arguments: ["allow", "deny"], ["from", "uid", "gid", "pid", "may"])
    func `of a configuration are refused with an empty array`(kind: String, key: String) {
        let other = key == "may" ? "" : "may = \"read\"\n"
        let message = refusal {
            try servePlan(
                ["a"], configuration: Configuration(contents: Array("[[\(kind)]]\n\(other)\(key) = []\n".utf8), path: "a.toml"))
        }
        #expect(message.contains("'\(kind)[0].\(key)': is empty"), "\(message)")
    }

    @Test(arguments: ["allow", "deny"], ["a.toml", "a.json"])
    func `of a configuration are at least one`(kind: String, path: String) {
        let text = path == "a.toml" ? "\(kind) = []\n" : "{\"\(kind)\": []}"
        let message = refusal { try servePlan(["a"], configuration: Configuration(contents: Array(text.utf8), path: path)) }
        #expect(message.contains("\(path): \(kind) is empty"), "\(message)")
    }

    @Test(
        arguments: [
            (["--max-connections-per-peer", "x"], "--max-connections-per-peer"), (["--max-handshakes", "-1"], "--max-handshakes"),
            (["--max-handshakes-per-peer", "1.5"], "--max-handshakes-per-peer"), (["--stall-limit", "x"], "--stall-limit"),
            (["--progress-limit", "x"], "--progress-limit"), (["--peer-silence-limit", "x"], "--peer-silence-limit"),
            (["--sandbox", "x"], "--sandbox"), (["--user", ""], "user is empty"), (["--group", ""], "group is empty"),
        ])
    func `and limits are refused when malformed`(arguments: [String], text: String) {
        #expect(refusal { try servePlan(["a"] + arguments) }.contains(text))
    }
}

// S-TLS-08
@Suite struct `Objects for authorisation` {
    private func plan(_ text: String) throws -> AuthorizationPlan? {
        guard case .authorization(let plan)? = try ToolObject.all([text])["a"] else { return nil }
        return plan
    }

    @Test func `are QEMU's`() throws {
        #expect(try plan("authz-simple,id=a,identity=CN=x,,O=y") == .list(NameList(rules: [.init(match: "CN=x,O=y", policy: .allow)])))
        #expect(try plan("authz-list,id=a") == .list(NameList()))
        let list = NameList(
            rules: [.init(match: "CN=bad", policy: .deny), .init(match: "CN=*", policy: .allow, format: .glob)], policy: .deny)
        #expect(
            try plan(
                "authz-list,id=a,policy=deny,rules.0.match=CN=bad,rules.0.policy=deny,rules.0.format=exact,rules.1.match=CN=*,rules.1.policy=allow,rules.1.format=glob"
            ) == .list(list))
        #expect(try plan("authz-list-file,id=a,filename=/x") == .file(path: "/x", refreshes: true))
        #expect(try plan("authz-list-file,id=a,filename=/x,refresh=off") == .file(path: "/x", refreshes: false))
    }

    @Test(
        arguments: [
            ("authz-simple,id=a", "identity"), ("authz-list,id=a,policy=maybe", "allow or deny"),
            ("authz-list,id=a,rules.0.match=x", "'rules.0.policy' is missing"), ("authz-list,id=a,rules.0.policy=allow", "unknown key"),
            ("authz-list,id=a,rules.0.match=x,rules.0.policy=allow,rules.0.format=regex", "exact or glob"),
            ("authz-list,id=a,rules.1.match=x,rules.1.policy=allow", "unknown key 'rules.1.match'"), ("authz-list-file,id=a", "filename"),
            ("authz-list-file,id=a,filename=", "filename"), ("authz-list-file,id=a,filename=/x,refresh=maybe", "on or off"),
            ("authz-pam,id=a,service=nbd", "PAM"),
        ])
    func `are refused with a reason`(text: String, reason: String) {
        let error = #expect(throws: ToolError.self) { try plan(text) }
        #expect(error?.message.contains(reason) == true, "\(error?.message ?? "")")
    }

    @Test func `let the first rule that matches decide`() {
        let list = NameList(
            rules: [.init(match: "CN=bad", policy: .deny), .init(match: "CN=*", policy: .allow, format: .glob), .init(match: "CN=*", policy: .deny)])
        #expect(!list.allows("CN=bad"))
        #expect(list.allows("CN=good"))
        #expect(list.allows("CN=*"))
        #expect(!list.allows("O=x"))
        #expect(NameList(policy: .allow).allows("anybody"))
        #expect(!NameList(rules: [.init(match: "e\u{301}", policy: .allow)]).allows("é"), "the same letter, another name")
    }

    @Test func `read QEMU's file`() throws {
        let text = """
            { "rules": [ { "match": "CN=a", "policy": "allow", "format": "exact" }, { "match": "*", "policy": "deny", "format": "glob" } ],
              "policy": "deny" }
            """
        let list = try NameList(contents: Array(text.utf8), path: "a.json")
        #expect(list == NameList(rules: [.init(match: "CN=a", policy: .allow), .init(match: "*", policy: .deny, format: .glob)]))
        #expect(try NameList(contents: Array("{}".utf8), path: "a.json") == NameList())
    }

    @Test(
        arguments: [
            "", "[]", "{", "{\"colour\":1}", "{\"policy\":\"maybe\"}", "{\"rules\":{}}", "{\"rules\":[{\"match\":\"a\"}]}",
            "{\"rules\":[{\"match\":1,\"policy\":\"allow\"}]}", "{\"rules\":[{\"match\":\"a\",\"policy\":\"allow\",\"format\":\"regex\"}]}",
        ])
    func `name the file that makes no sense`(text: String) {
        let error = #expect(throws: ToolError.self) { try NameList(contents: Array(text.utf8), path: "a.json") }
        #expect(error?.kind == .runtime)
        #expect(error?.message.contains("'a.json'") == true)
    }
}
