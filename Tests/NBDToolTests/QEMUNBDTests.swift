import BlockDrivers
import NBDProtocol
import NBDServer
import Testing

@testable import NBDTool

@Suite struct `Options in the manner of getopt` {
    private static let scanner = OptionScanner(options: [
        .init("read-only", "r"), .init("persistent", "t"), .init("pid-file", takesValue: true), .init("port", "p", takesValue: true),
        .init("shared", "e", takesValue: true),
    ])

    @Test(
        arguments: [
            (["-tr"], [.option("persistent", value: nil), .option("read-only", value: nil)]),
            (["-e1", "-e", "2"], [.option("shared", value: "1"), .option("shared", value: "2")]),
            (["-tre4"], [.option("persistent", value: nil), .option("read-only", value: nil), .option("shared", value: "4")]),
            (["-e", "-1"], [.option("shared", value: "-1")]), (["-p="], [.option("port", value: "=")]),
            (
                ["--port=1", "--port", "2", "--port="],
                [.option("port", value: "1"), .option("port", value: "2"), .option("port", value: "")]
            ),
            (["--pers"], [.option("persistent", value: nil)]), (["--pi", "x"], [.option("pid-file", value: "x")]),
            (["a", "-r", "b"], [.operand("a"), .option("read-only", value: nil), .operand("b")]),
            (["--", "-r", "--"], [.operand("-r"), .operand("--")]), (["-"], [.operand("-")]), ([""], [.operand("")]), ([], []),
        ] as [([String], [OptionScanner.Item])])
    func `are taken apart`(arguments: [String], items: [OptionScanner.Item]) throws {
        #expect(try Self.scanner.scan(arguments) == items)
    }

    @Test(arguments: [
        (["-z"], "invalid option -- 'z'"), (["-rz"], "invalid option -- 'z'"), (["--bogus"], "unrecognized option '--bogus'"),
        (["--=x"], "unrecognized option"), (["-p"], "option requires an argument -- 'p'"), (["-tp"], "option requires an argument -- 'p'"),
        (["--port"], "option '--port' requires an argument"), (["--read-only=x"], "doesn't allow an argument"),
        (["--p"], "ambiguous: --persistent, --pid-file, --port"),
    ])
    func `are refused when malformed`(arguments: [String], reason: String) {
        do {
            Issue.record("accepted: \(try Self.scanner.scan(arguments))")
        } catch {
            #expect(error.message.contains(reason))
        }
    }
}

/// The plan for `qemu-nbd` with these arguments.
private func qemuPlan(_ arguments: [String], activated: [String] = []) throws -> ServePlan {
    guard case .serve(let options) = try QEMUNBDInvocation(arguments) else { throw ToolError.usage("not to serve") }
    return try ServePlan(options, activated: activated)
}

@Suite struct `The qemu-nbd personality` {
    // S-SRV-06, S-SRV-07
    @Test func `serves one client once, to everybody, in silence`() throws {
        let plan = try qemuPlan(["a.raw"])
        #expect(plan.listeners == [.init(place: .tcp(host: "0.0.0.0", port: 10809))])
        #expect(plan.server.connectionLimit == 1)
        #expect(plan.server.stopsAfterLastClient)
        #expect(!plan.printsURI)
        #expect(plan.hangupStops)  // S-SRV-08
        #expect(plan.exports.map(\.name) == [""])
        #expect(plan.exports[0].storage == RawOptions(discard: .ignore))
        #expect(!plan.exports[0].isFormatGiven)
    }

    @Test func `takes joined options as scripts write them`() throws {
        let plan = try qemuPlan([
            "-tr", "-e0", "-p10811", "-fraw", "-xdisk", "-b", "127.0.0.1", "--disca=on", "--handshake-limit=0", "a.raw",
        ])
        #expect(!plan.server.stopsAfterLastClient)
        #expect(plan.server.connectionLimit == 0)
        #expect(plan.server.handshakeLimit == .zero)
        #expect(plan.listeners.map(\.place) == [.tcp(host: "127.0.0.1", port: 10811)])
        #expect(plan.exports[0].name == "disk")
        #expect(plan.exports[0].isReadOnly)
        #expect(plan.exports[0].isFormatGiven)
        #expect(plan.exports[0].storage.discard == .unmap)
    }

    @Test(
        arguments: [
            (["-k", "/a", "-p", "1"], [.unix(path: "/a")]), (["-k", "/a", "-k", "/b"], [.unix(path: "/a"), .unix(path: "/b")]),
            (["-b", "::1", "-b", "127.0.0.1"], [.tcp(host: "::1", port: 10809), .tcp(host: "127.0.0.1", port: 10809)]),
        ] as [([String], [ServePlan.Place])])
    func `listens where it is told`(arguments: [String], places: [ServePlan.Place]) throws {
        #expect(try qemuPlan(arguments + ["a"]).listeners.map(\.place) == places)
    }

    @Test func `takes file names as qemu does`() throws {
        #expect(try qemuPlan(["file:a.raw"]).exports[0].source == .file("a.raw"))
        #expect(try qemuPlan(["memory:1G"]).exports[0].source == .file("memory:1G"))
        #expect(try qemuPlan(["-o", "0x200", "a"]).exports[0].offset == 512)
        #expect(
            try qemuPlan(["--image-opts", "driver=raw,file.driver=file,file.filename=a,offset=0,size=4096"]).exports[0].byteCount == 4096)
    }

    // Every line was refused by qemu-nbd 7.2 with exit code 1, too, but for the ones that docs/serve.md lists as differences.
    @Test(arguments: [
        ([], "Invalid number of arguments"), (["a", "b"], "Invalid number of arguments"), ([""], "name of the image is empty"),
        (["-k", "rel", "a"], "socket path must be absolute"), (["-k", "@x", "a"], "socket path must be absolute"),
        (["-p", "abc", "a"], "invalid port 'abc'"), (["-p", "10809x", "a"], "invalid port '10809x'"),
        (["-p", "99999", "a"], "invalid port '99999'"),
        (["-e", "-1", "a"], "Invalid shared device number '-1'"), (["-e", "x", "a"], "Invalid shared device number 'x'"),
        (["-e", "99999999999", "a"], "Invalid shared device number"), (["-o", "1M", "a"], "Invalid offset '1M'"),
        (["-o", "1x", "a"], "Invalid offset '1x'"), (["-o", "-1", "a"], "Invalid offset '-1'"),
        (["-o", "99999999999999999999", "a"], "Invalid offset"), (["--cache=foo", "a"], "Invalid --cache mode 'foo'"),
        (["-n", "--cache", "none", "a"], "-n and --cache can only be specified once"), (["-n", "-n", "a"], "can only be specified once"),
        (["--aio=foo", "a"], "Invalid --aio mode 'foo'"), (["--aio=native", "-f", "raw", "a"], "aio=native"),
        (["--discard=foo", "a"], "Invalid --discard mode 'foo'"), (["--detect-zeroes=foo", "a"], "Invalid --detect-zeroes mode 'foo'"),
        (["--detect-zeroes=unmap", "a"], "detect-zeroes=unmap needs discard=unmap"),
        (["-f", "foo", "a"], "format 'foo'"), (["-f", "vmdk", "a"], "format 'vmdk'"), (["-P", "1", "a"], "invalid option -- 'P'"),
        (["--bogus"], "unrecognized option '--bogus'"), (["-x"], "option requires an argument -- 'x'"),
        (["-c", "/dev/nbd0", "a"], "--connect"),
        (["-d", "/dev/nbd0"], "--disconnect"),
        (["-l", "x", "a"], "--load-snapshot needs"), (["-s", "-l", "x", "-f", "qcow2", "a"], "mutually exclusive"),
        (["--tls-creds=foo", "a"], "--tls-creds"), (["--tls-authz=foo", "a"], "--tls-authz"),
        (["--tls-hostname=foo", "a"], "--tls-hostname is for clients"),
        (["--object", "foo", "a"], "--object"), (["--selinux-label=foo", "a"], "--selinux-label"),
        (["--image-opts", "-f", "raw", "driver=file,filename=a"], "--image-opts and -f are mutually exclusive"),
        (["--image-opts", "driver=raw,file.driver=file,file.filename=a,bogus=1"], "unknown key 'bogus'"),
        (["-f", "raw", "json:foo"], "'json:' are not supported"), (["-f", "raw", "nbd:foo"], "'nbd:' are not supported"),
        (["-L", "a"], "List mode is incompatible with a file name"),
        (["-L", "-x", "foo"], "List mode is incompatible with per-device settings"),
        (["-L", "--fork"], "List mode is incompatible with forking"), (["-L", "-k", "rel"], "socket path must be absolute"),
    ])
    func `refuses what qemu-nbd refuses, and what it cannot do`(arguments: [String], reason: String) {
        #expect(refusal { try qemuPlan(arguments) }.contains(reason))
    }

    // S-SRV-09
    @Test(arguments: [
        (["-k", "/s"], "Unix socket can't be set when using socket activation"),
        (["-p", "1"], "TCP port number can't be set when using socket activation"),
        (["-b", "x"], "The interface can't be set when using socket activation"),
    ])
    func `takes no addresses when sockets are passed to it`(arguments: [String], reason: String) {
        #expect(refusal { try qemuPlan(arguments + ["a"], activated: ["unknown"]) } == reason)
    }

    @Test func `knows help, versions and lists`() throws {
        #expect(try QEMUNBDInvocation(["-h", "--bogus=ignored"].dropLast()) == .help)
        #expect(try QEMUNBDInvocation(["-V"]) == .version)
        #expect(try QEMUNBDInvocation(["-T", "help", "--bogus"].dropLast()) == .traceNames)
        #expect(try QEMUNBDInvocation(["-L"]) == .list(.tcp(host: "127.0.0.1", port: 10809), nil))
        #expect(try QEMUNBDInvocation(["-L", "-b", "h", "-p", "1", "-r"]) == .list(.tcp(host: "h", port: 1), nil))
        #expect(try QEMUNBDInvocation(["-L", "-k", "/s"]) == .list(.unix(path: "/s"), nil))
    }

    // S-TLS-14
    @Test func `lists over TLS`() throws {
        let words = ["-L", "--object", "tls-creds-psk,id=t,dir=/x,username=u", "--tls-creds", "t", "--tls-hostname", "h"]
        let tls = TLSClientPlan(credentials: TLSCredentialsPlan(kind: .psk(username: "u"), directory: "/x", endpoint: .client), hostname: "h")
        #expect(try QEMUNBDInvocation(words) == .list(.tcp(host: "127.0.0.1", port: 10809), tls))
        let refused = [
            ["-L", "--tls-creds", "t"], ["-L", "--tls-hostname", "h"], words + ["--tls-authz", "a"],
            ["-L", "--object", "tls-creds-psk,id=t,dir=/x,endpoint=server", "--tls-creds", "t"],
        ]
        for words in refused { #expect(throws: ToolError.self) { try QEMUNBDInvocation(words) } }
    }

    @Test func `mentions every option in its help that it does not refuse`() {
        let refused: Set<String> = [
            "connect", "disconnect", "selinux-label",
        ]
        for option in QEMUNBDInvocation.options {
            #expect(QEMUNBDPersonality.help.contains("--\(option.name)") != refused.contains(option.name))
        }
    }

    @Test func `lists exports in the layout of qemu-nbd`() {
        // The answer of qemu-nbd 7.2 -L to a qemu-nbd -x foo -D "my disk" of 1 MiB.
        let info = ExportInfo(
            name: "foo", text: nil, byteCount: 1_048_576,
            flags: TransmissionFlags(rawValue: 0xced), blockSizes: BlockSizes(minimum: 1, preferred: 4096, maximumPayload: 33_554_432))
        let entry = QEMUNBDList.Entry(name: "foo", description: "my disk", info: info, contexts: ["base:allocation"])
        #expect(
            QEMUNBDList.text([entry]) == """
                exports available: 1
                 export: 'foo'
                  description: my disk
                  size:  1048576
                  flags: 0xced ( flush fua trim zeroes df cache fast-zero )
                  min block: 1
                  opt block: 4096
                  max block: 33554432
                  available meta contexts: 1
                   base:allocation

                """)
        #expect(QEMUNBDList.text([]) == "exports available: 0\n")
        #expect(QEMUNBDList.text([.init(name: "a\u{1B}[2J\n", description: "")]) == "exports available: 1\n export: 'a?[2J?'\n")
    }
}
