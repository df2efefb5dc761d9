import BlockDrivers
import NBDServer
import Testing

@testable import NBDTool

@Suite struct `A configuration file` {
    static let toml = """
        default-export = "disk"
        pid-file = "/run/nbd.pid"

        [limits]
        connections = 7
        requests = 32
        handshake = 0
        drain = 5
        memory = "2G"
        connection-memory = 67108864

        [[listeners]]
        host = "127.0.0.1"
        port = 10900
        oldstyle = "disk"

        [[listeners]]
        unix = "@name"
        list = false

        [[exports]]
        name = "disk"
        file = "/srv/disk.raw"
        description = "a disk"
        format = "raw"
        read-only = true
        offset = "1M"
        size = 4096
        cache = "none"
        discard = "ignore"
        detect-zeroes = "on"
        aio = "threads"
        locking = false

        [[exports]]
        name = "scratch"
        memory = "1G"
        """

    static let json = """
        {"default-export": "disk", "pid-file": "/run/nbd.pid",
         "limits": {"connections": 7, "requests": 32, "handshake": 0, "drain": 5, "memory": "2G", "connection-memory": 67108864},
         "listeners": [{"host": "127.0.0.1", "port": 10900, "oldstyle": "disk"}, {"unix": "@name", "list": false}],
         "exports": [
          {"name": "disk", "file": "/srv/disk.raw", "description": "a disk", "format": "raw", "read-only": true, "offset": "1M", "size": 4096,
           "cache": "none", "discard": "ignore", "detect-zeroes": "on", "aio": "threads", "locking": false},
          {"name": "scratch", "memory": "1G"}]}
        """

    private func configuration(_ text: String, _ path: String = "n.toml") throws -> Configuration {
        try Configuration(contents: Array(text.utf8), path: path)
    }

    // Only tables that a document leaves out are added.
    @Test(
        arguments: [
            ("serve", "", 1), ("tls", "", 1),
            ("authorisation", "[tls]\ndirectory = \"/x\"\n[[exports]]\nname = \"backup-1\"\nnull = \"1M\"\n", 1),
        ])
    func `is as the documents have it, word for word`(document: String, rest: String, exports: Int) throws {
        var path = #filePath.split(separator: "/").dropLast(3).map(String.init)
        path += ["docs", document + ".md"]
        let text = String(decoding: try HostProcess.contents(of: "/" + path.joined(separator: "/"), limit: 1 << 20), as: UTF8.self)
        let example = try #require(text.components(between: "```toml\n", and: "```"))
        let plan = try servePlan([], configuration: configuration(example + rest))
        #expect(plan.exports.count == exports)
        #expect(plan.tls != nil)
        guard document == "authorisation" else { return }
        // Made as docs/tls.md shows.
        var stolen = PeerIdentity(address: .unix, tls: .certificate(distinguishedName: "O=Example,CN=stolen"))
        #expect(plan.access.denied[0].fits(stolen))
        stolen.tls = .certificate(distinguishedName: "O=Example,CN=client")
        #expect(!plan.access.denied[0].fits(stolen))
    }

    @Test(arguments: [(toml, "n.toml"), (json, "n.json")])
    func `sets everything, in both notations`(text: String, path: String) throws {
        let plan = try servePlan([], configuration: configuration(text, path))
        #expect(plan.server.defaultExport == "disk")
        #expect(plan.pidFile == "/run/nbd.pid")
        #expect(plan.server.connectionLimit == 7)
        #expect(plan.server.requestLimit == 32)
        #expect(plan.server.handshakeLimit == .zero)
        #expect(plan.server.drainLimit == .seconds(5))
        #expect(plan.server.memoryLimit == 2 << 30)
        #expect(plan.server.connectionMemoryLimit == 64 << 20)
        #expect(
            plan.listeners == [
                .init(place: .tcp(host: "127.0.0.1", port: 10900), oldstyleExport: "disk"),
                .init(place: .unix(path: "\0name"), isListable: false),
            ])
        let storage = RawOptions(cache: .none, discard: .ignore, detectZeroes: .on, aio: .threads, isLocked: false)
        #expect(
            plan.exports[0]
                == ExportPlan(
                    name: "disk", description: "a disk", source: .file("/srv/disk.raw"), offset: 1 << 20, byteCount: 4096, isReadOnly: true,
                    storage: storage, isFormatGiven: true))
        #expect(plan.exports[1].source == .memory(byteCount: 1 << 30))
        #expect(plan.exports[1].storage.discard == .unmap)
        #expect(plan.exports.count == 2)
    }

    @Test func `gives way to the command line`() throws {
        let plan = try servePlan(
            ["-p", "1", "-e", "3", "--pid-file", "p", "-r", "more.raw", "--no-list"], configuration: configuration(Self.toml))
        #expect(plan.listeners == [.init(place: .loopback(port: 1), isListable: false)])
        #expect(plan.server.connectionLimit == 3)
        #expect(plan.server.requestLimit == 32)
        #expect(plan.pidFile == "p")
        #expect(plan.exports.map(\.name) == ["disk", "scratch", ""])
        #expect(plan.exports.map(\.isReadOnly) == [true, true, true])
    }

    @Test func `without listeners leaves the usual ones`() throws {
        let plan = try servePlan([], configuration: configuration("[[exports]]\nname = \"a\"\nfile = \"a\"\n"))
        #expect(plan.listeners.map(\.place) == [.loopback(port: 10809)])
    }

    @Test(arguments: [
        ("colour = 1", "n.toml: unknown key 'colour'"), ("[limits]\nconection = 1", "n.toml: unknown key 'conection' in 'limits'"),
        ("[[exports]]\nname = \"a\"\nfile = \"a\"\n[[exports]]\nname = \"b\"\nfil = \"b\"", "n.toml: unknown key 'fil' in 'exports[1]'"),
        ("[[listeners]]\nprot = 1", "n.toml: unknown key 'prot' in 'listeners[0]'"), ("[[exports]]\nfile = \"a\"", "exports[0].name"),
        ("[limits]\nconnections = \"many\"", "limits.connections"), ("[limits]\nconnections = -1", "limits.connections -1"),
        ("[limits]\nrequests = 0", "limits.requests 0"), ("[limits]\nhandshake = -1", "limits.handshake '-1'"),
        ("[limits]\nmemory = \"4Q\"", "'4Q' is not a size"), ("[limits]\nmemory = -5", "-5 is not a size"),
        ("[limits]\nmemory = 5", "limits.memory 5 is too small"),
        ("[limits]\nconnection-memory = 5", "limits.connection-memory 5 is too small"),
        ("[[listeners]]\nlist = true", "listeners[0]: exactly one of host, unix and activated"),
        ("[[listeners]]\nhost = \"a\"\nunix = \"b\"", "listeners[0]: exactly one of host, unix and activated"),
        ("[[listeners]]\nactivated = \"a\"\nport = 1", "has its port already"),
        ("[[exports]]\nname = \"a\"\nfile = \"a\"\n[[listeners]]\nactivated = \"s\"", "no socket named 's' was passed: socket activation"),
        ("[[listeners]]\nhost = \"a\"\nport = 65536", "invalid port '65536'"), ("[[listeners]]\nhost = \"\"", "listeners[0].host is empty"),
        ("[[listeners]]\nunix = \"a\"\nport = 1", "a Unix socket has no port"),
        ("[[exports]]\nname = \"a\"", "exports[0]: exactly one of file"),
        ("[[exports]]\nname = \"a\"\nfile = \"a\"\nmemory = 1", "exports[0]: exactly one of file"),
        ("[[exports]]\nname = \"a\"\nfile = \"a\"\ncache = \"x\"", "Invalid exports[0].cache mode 'x'"),
        ("[[exports]]\nname = \"a\"\nfile = \"a\"\nformat = \"vmdk\"", "format 'vmdk'"), ("default-export = \"z\"", "nothing to serve"),
        ("default-export = \"z\"\n[[exports]]\nname = \"a\"\nfile = \"a\"", "there is no export 'z'"),
        ("[[exports]]\nname = \"a\"\nfile = \"a\"\n[[listeners]]\nunix = \"s\"\noldstyle = \"z\"", "there is no export 'z'"),
        ("exports = 3", "exports"), ("exports = [3]", "exports[0]"),
        ("a = ", "n.toml: line 1, column 5: expected a value"),
        ("[limits]\nhandshake = 1979-05-27", "n.toml: line 2, column 13: dates and times"),
        ("[[exports]]\nname = \"a\"\nfile = \"a\\u0000b\"", "n.toml: 'exports[0].file': contains the character U+0000"),
        ("default-export = 1.5", "default-export"), ("", "nothing to serve"),
    ])
    func `is refused, and the message names the file or the key`(text: String, reason: String) {
        let message = refusal { try servePlan([], configuration: configuration(text)) }
        #expect(message.contains(reason))
        #expect(!message.contains("\n"))
    }

    @Test(arguments: [
        ("{", "n.json"), ("[]", "n.json"), ("{\"exports\": [{\"name\": 3}]}", "exports[0].name"), ("{\"x\": 1}", "unknown key 'x'"),
        ("{\"exports\": [{\"name\": \"a\", \"file\": \"a\", \"raed-only\": true}]}", "unknown key 'raed-only' in 'exports[0]'"),
        (String(repeating: "[", count: 100_000), "n.json"), ("{\"limits\": {\"memory\": 1e300}}", "n.json"),
        ("{\"limits\": {\"connections\": 99999999999999999999}}", "n.json"),
    ])
    func `of JSON is refused likewise`(text: String, reason: String) {
        let message = refusal { try servePlan([], configuration: configuration(text, "n.json")) }
        #expect(message.contains(reason))
        #expect(message.contains("n.json"))
        #expect(!message.contains("\n"))
    }

    @Test func `must be UTF-8, small, and named by its notation`() {
        #expect(throws: ToolError.usage("c.toml: not UTF-8")) { try Configuration(contents: [0xFF], path: "c.toml") }
        #expect(throws: ToolError.usage("c.conf: the name of a configuration ends in .toml or .json")) {
            try Configuration(contents: [], path: "c.conf")
        }
        #expect(throws: ToolError.self) {
            try Configuration(contents: [UInt8](repeating: 32, count: Configuration.byteLimit + 1), path: "c.toml")
        }
    }

    // S-SRV-09
    @Test func `says how the sockets of a service manager are served, by their names`() throws {
        let exports = "[[exports]]\nname = \"a\"\nfile = \"a\"\n"
        let text = exports + "[[listeners]]\nactivated = \"old\"\noldstyle = \"a\"\n[[listeners]]\nactivated = \"quiet\"\nlist = false\n"
        let configuration = try configuration(text)
        #expect(
            try servePlan([], configuration: configuration, activated: ["unknown", "quiet", "old", "quiet"]).listeners == [
                .init(place: .activated(name: "old"), oldstyleExport: "a"), .init(place: .activated(name: "quiet"), isListable: false),
                .init(place: .activated(name: "unknown")),
            ])
        #expect(
            refusal { try servePlan([], configuration: configuration, activated: ["quiet", "new"]) }
                == "listeners: no socket named 'old' was passed, only quiet, new")
        // An address on the command line replaces all listeners of the file.
        #expect(try servePlan(["-p", "1"], configuration: configuration).listeners.map(\.place) == [.loopback(port: 1)])
        let twice = try self.configuration(exports + "[[listeners]]\nactivated = \"a\"\n[[listeners]]\nactivated = \"a\"\n")
        #expect(refusal { try servePlan([], configuration: twice, activated: ["a"]) }.contains("given twice"))
    }

    @Test func `cannot be mixed with what would change nothing`() throws {
        let configuration = try configuration(Self.toml)
        #expect(refusal { try servePlan(["--cache", "none"], configuration: configuration) }.contains("--cache does not change"))
        #expect(
            refusal { try servePlan([], configuration: configuration, activated: ["unknown"]) }.contains(
                "listeners in the configuration file"))
    }
}

extension String {
    /// What stands between the first `start` and the next `end`.
    fileprivate func components(between start: String, and end: String) -> String? {
        guard let begin = firstRange(of: start)?.upperBound, let stop = self[begin...].firstRange(of: end)?.lowerBound else { return nil }
        return String(self[begin..<stop])
    }
}
