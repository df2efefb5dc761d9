import ArgumentParser
import BlockDrivers
import NBDServer
import Testing

@testable import NBDTool

/// The plan for `nbd serve` with these arguments.
func servePlan(_ arguments: [String], configuration: Configuration? = nil, activated: [String] = []) throws -> ServePlan {
    let command = try ServeCommand.parse(arguments)
    try command.later.refuse()
    return try ServePlan(command.options, configuration: configuration, activated: activated)
}

/// The message with which a command line is refused.
func refusal(_ body: () throws -> ServePlan) -> String {
    do {
        return "accepted: \(try body())"
    } catch {
        return (error as? ToolError)?.message ?? ServeCommand.message(for: error)
    }
}

@Suite struct `A plan for nbd serve` {
    @Test func `without options serves one image to this host until it is stopped`() throws {
        let plan = try servePlan(["disk.raw"])
        #expect(plan.listeners == [.init(place: .loopback(port: 10809))])
        #expect(plan.exports.map(\.name) == [""])
        #expect(plan.exports.map(\.source) == [.file("disk.raw")])
        #expect(!plan.exports[0].isReadOnly)
        #expect(plan.exports[0].storage == RawOptions(discard: .unmap))
        #expect(plan.server.connectionLimit == 100)  // S-LIM-13
        #expect(plan.server.requestLimit == 16)  // S-LIM-07
        #expect(plan.server.handshakeLimit == .seconds(10))
        #expect(!plan.server.stopsAfterLastClient)
        #expect(plan.printsURI)
        #expect(!plan.hangupStops)
    }

    @Test(
        arguments: [
            (["-p", "0"], [.loopback(port: 0)]), (["-p10810"], [.loopback(port: 10810)]), (["-b", "::"], [.tcp(host: "::", port: 10809)]),
            (["-b", "[::1]", "-b", "host", "--port", "1"], [.tcp(host: "::1", port: 1), .tcp(host: "host", port: 1)]),
            (["-k", "rel.sock"], [.unix(path: "rel.sock")]), (["-U", "-"], [.privateSocket]), (["-k", "@name"], [.unix(path: "\0name")]),
            (["-k", "/a", "-p", "7"], [.unix(path: "/a"), .loopback(port: 7)]), (["--single", "--no-print-uri"], [.standardInput]),
            (["--run", "true"], [.privateSocket]), (["--run", "true", "-p", "0"], [.loopback(port: 0)]),
        ] as [([String], [ServePlan.Place])])
    func `listens where it is told`(arguments: [String], places: [ServePlan.Place]) throws {
        #expect(try servePlan(arguments + ["a"]).listeners.map(\.place) == places)
    }

    @Test(arguments: [["--run", "true"], ["--single"]])
    func `leaves standard output to others`(arguments: [String]) throws {
        #expect(try !servePlan(arguments + ["a"]).printsURI)
        // nbdinfo --json -- [ nbd serve a ] must stay JSON.
        #expect(try !servePlan(["a"], activated: ["unknown"]).printsURI)
        #expect(try servePlan(["a", "--print-uri"], activated: ["unknown"]).printsURI)
    }

    @Test func `takes joined short options`() throws {
        let plan = try servePlan(["-tr", "-e1", "-xname", "-o1M", "-Dtext", "-fraw", "a"])
        #expect(plan.exports[0].isReadOnly)
        #expect(plan.server.connectionLimit == 1)
        #expect(plan.exports[0].name == "name")
        #expect(plan.exports[0].offset == 1 << 20)
        #expect(plan.exports[0].description == "text")
        #expect(plan.exports[0].isFormatGiven)
    }

    @Test func `takes every limit`() throws {
        let plan = try servePlan([
            "a", "--max-connections", "0", "--requests", "64", "--handshake-limit", "0", "--memory-limit", "96M",
            "--connection-memory-limit", "32M", "--drain-limit", "3",
            "--once",
        ])
        #expect(plan.server.connectionLimit == 0)
        #expect(plan.server.requestLimit == 64)
        #expect(plan.server.handshakeLimit == .zero)
        #expect(plan.server.memoryLimit == 96 << 20)
        #expect(plan.server.connectionMemoryLimit == 32 << 20)
        #expect(plan.server.drainLimit == .seconds(3))
        #expect(plan.server.stopsAfterLastClient)
    }

    @Test(
        arguments: [
            ("memory:1G", .memory(byteCount: 1 << 30)), ("null:0", .null(byteCount: 0)), ("pattern:4K", .pattern(byteCount: 4096)),
            ("./memory:1G", .file("./memory:1G")), ("memory", .file("memory")),
        ] as [(String, ExportPlan.Source)])
    func `knows images that are no files`(operand: String, source: ExportPlan.Source) throws {
        #expect(try servePlan([operand]).exports[0].source == source)
    }

    @Test func `serves several exports`() throws {
        let plan = try servePlan([
            "first.raw", "-x", "one", "--export",
            "name=two,file=b,,c.raw,readonly=on,description=d,,e,offset=1M,size=2M,cache=unsafe,locking=off",
            "--export", "name=three,memory=1G", "--default-export", "two", "--oldstyle", "three", "--no-list",
        ])
        #expect(plan.exports.map(\.name) == ["one", "two", "three"])
        let two = plan.exports[1]
        #expect(two.source == .file("b,c.raw"))
        #expect(two.isReadOnly)
        #expect(two.description == "d,e")
        #expect(two.offset == 1 << 20)
        #expect(two.byteCount == 2 << 20)
        #expect(two.storage.cache.rawValue == "unsafe")
        #expect(!two.storage.isLocked)
        #expect(plan.exports[2].source == .memory(byteCount: 1 << 30))
        #expect(plan.server.defaultExport == "two")
        #expect(plan.listeners == [.init(place: .loopback(port: 10809), oldstyleExport: "three", isListable: false)])
    }

    @Test func `bounds the memory of one client by that of all`() throws {
        #expect(try servePlan(["a"]).server.connectionMemoryLimit == 64 << 20)
        #expect(try servePlan(["--connection-memory-limit", "1M", "a"]).server.connectionMemoryLimit == 1 << 20)
        let plan = try servePlan(["--memory-limit", "80M", "--connection-memory-limit", "1G", "a"])
        #expect(plan.server.memoryLimit == 80 << 20)
        #expect(plan.server.connectionMemoryLimit == 80 << 20)
    }

    @Test func `is read-only throughout with -r`() throws {
        let plan = try servePlan(["-r", "a", "--export", "name=b,file=b,readonly=off"])
        #expect(plan.exports.map(\.isReadOnly) == [true, true])
    }

    @Test func `reads the simple forms of image options`() throws {
        let window = try servePlan(["--image-opts", "driver=raw,file.driver=file,file.filename=a,,b,offset=512,size=4K", "-o", "1024"])
            .exports[0]
        #expect(window.source == .file("a,b"))
        #expect(window.offset == 1536)
        #expect(window.byteCount == 3072)
        #expect(window.isFormatGiven)
        let whole = try servePlan(["--image-opts", "driver=host_device,filename=/dev/sda,locking=off,read-only=on"]).exports[0]
        #expect(whole.source == .file("/dev/sda"))
        #expect(whole.isReadOnly)
        #expect(!whole.storage.isLocked)
    }

    @Test(arguments: [
        ([], "nothing to serve"), (["a", "b"], "expected one image, got 2"), ([""], "name of the image is empty"),
        (["memory:"], "invalid size ''"), (["memory:8E"], "invalid size '8E'"), (["-p", "65536", "a"], "invalid port '65536'"),
        (["-p", "+1", "a"], "invalid port '+1'"), (["-p", "", "a"], "invalid port ''"), (["-p", "nbd", "a"], "invalid port 'nbd'"),
        (["-b", "", "a"], "address to bind to is empty"), (["-b", "h", "-b", "h", "a"], "same address is given twice"),
        (["-k", "", "a"], "name of the Unix socket is empty"), (["-k", "@", "a"], "name of the Unix socket is empty"),
        (["-k", String(repeating: "s", count: 108), "a"], "too long"), (["--shared=-1", "a"], "number of clients"),
        (["-e", "99999999999", "a"], "number of clients"), (["--requests", "0", "a"], "--requests '0'"),
        (["--requests", "1025", "a"], "--requests '1025'"), (["--handshake-limit", "1.5", "a"], "--handshake-limit '1.5'"),
        (["--drain-limit", "x", "a"], "--drain-limit 'x'"), (["--memory-limit", "1M", "a"], "--memory-limit 1048576 is too small"),
        (["--memory-limit", "81919K", "a"], "--memory-limit 83885056 is too small"),
        (["--connection-memory-limit", "1023K", "a"], "--connection-memory-limit 1047552 is too small"),
        (["--connection-memory-limit", "x", "a"], "--connection-memory-limit 'x'"), (["--memory-limit", "x", "a"], "--memory-limit 'x'"),
        (["-o", "1Z", "a"], "Invalid offset '1Z'"),
        (["--size", "x", "a"], "--size 'x'"), (["-o", "7E", "--size", "7E", "a"], "beyond 2^63"),
        (["-f", "vmdk", "a"], "format 'vmdk' is not supported"), (["--cache", "fast", "a"], "Invalid --cache mode 'fast'"),
        (["--discard", "x", "a"], "Invalid --discard mode 'x'"), (["--detect-zeroes", "x", "a"], "Invalid --detect-zeroes mode 'x'"),
        (["--aio", "x", "a"], "Invalid --aio mode 'x'"), (["--aio", "native", "a"], "aio=native"),
        (["--detect-zeroes", "unmap", "--discard", "ignore", "a"], "detect-zeroes=unmap needs discard=unmap"),
        (["-x", "n", "--export", "name=b,file=b"], "--export-name needs an image operand"),
        (["--export", "name=b,file=b", "--export", "name=b,file=c"], "export name 'b' is given twice"),
        (["--export", "file=b"], "'name' is missing"), (["--export", "name=b"], "exactly one of file"),
        (["--export", "name=b,file=b,memory=1"], "exactly one of file"), (["--export", "name=b,file="], "name of the file is empty"),
        (["--export", "name=b,file=b,colour=red"], "unknown key 'colour'"), (["--export", "name=b,file=b,readonly=1"], "on or off"),
        (["--export", "name=b,file=b,format=vdi"], "format 'vdi'"), (["--default-export", "z", "a"], "there is no export 'z'"),
        (["--oldstyle", "z", "a"], "there is no export 'z'"),
        (["--image-opts", "-f", "raw", "driver=file,filename=a"], "mutually exclusive"),
        (["--image-opts", "driver=vmdk,file.filename=a"], "driver 'vmdk' is not supported"),
        (["--image-opts", "driver=raw,file.driver=nbd,file.filename=a"], "file.driver 'nbd'"),
        (["--image-opts", "driver=raw,filename=a"], "'file.filename' is missing"),
        (["--image-opts", "driver=file,filename=a,offset=1"], "unknown key 'offset'"),
        (["--image-opts", "driver=raw,file.filename=a,size=4K", "-o", "5000"], "beyond the size"),
        (["--fork", "--run", "x", "a"], "--fork and --run"), (["--fork", "--exit-with-parent", "a"], "--fork and --exit-with-parent"),
        (["--fork", "--single", "a"], "--fork and --single"), (["--single", "--run", "x", "a"], "--run and --single"),
        (["--single", "--print-uri", "a"], "nothing to connect to"), (["--single", "-p", "1", "a"], "--single serves standard input"),
        (["--pid-file", "", "a"], "name of the pid file is empty"), (["--ready-fd", "x", "a"], "--ready-fd 'x'"),
        (["--ready-fd", "0", "a"], "--ready-fd '0'"), (["-T", "", "a"], "--trace"), (["-e"], "Missing value"),
        (["--bogus", "a"], "Unknown option"),
    ])
    func `is refused, and the message says why`(arguments: [String], reason: String) {
        let message = refusal { try servePlan(arguments) }
        #expect(message.contains(reason))
        #expect(!message.contains("\n"))
    }

    // S-LIM-02
    @Test func `has names and descriptions of at most 4096 bytes`() throws {
        let longest = String(repeating: "é", count: 2048)
        #expect(try servePlan(["-x", longest, "-D", longest, "a"]).exports[0].name == longest)
        #expect(refusal { try servePlan(["-x", longest + "x", "a"]) }.contains("too long"))
        #expect(refusal { try servePlan(["-D", longest + "x", "a"]) }.contains("too long"))
    }

    @Test func `has the contexts that were asked for`() throws {
        let plan = try servePlan([
            "--export", "name=a,memory=1M,allocation-depth=on,bitmap=x,bitmap=y:z,track=t,track=u:v:4K", "--export", "name=b,memory=1M",
        ])
        #expect(plan.exports[0].contexts.showsAllocationDepth)
        #expect(plan.exports[0].contexts.bitmaps == ["x", "y:z"])
        #expect(plan.exports[0].contexts.tracks == [.init(name: "t"), .init(name: "u:v", granularity: 4096)])
        #expect(plan.exports[1].contexts == ContextPlan())
        let operand = try servePlan(["-A", "-B", "x", "-By", "--track", "t:512", "a"]).exports[0].contexts
        #expect(operand.showsAllocationDepth && operand.bitmaps == ["x", "y"] && operand.tracks == [.init(name: "t", granularity: 512)])
    }

    // S-EXP-16
    @Test(arguments: [
        ("bitmap=x,bitmap=x", "given twice"), ("bitmap=x,track=x", "given twice"), ("bitmap=", "1 to 1023 bytes"),
        ("track=t:1000", "power of two"), ("track=t:4G", "power of two"), ("track=t:y", "invalid granularity"),
        ("track=t,readonly=on", "read-only"), ("allocation-depth=maybe", "on or off"), ("node=a", "exactly one"),
    ])
    func `refuses contexts that make no sense`(keys: String, reason: String) {
        #expect(refusal { try servePlan(["--export", "name=a,memory=1M," + keys]) }.contains(reason))
    }

    @Test(arguments: [
        ("driver=memory,size=1M", "'node-name' is missing"), ("node-name=a", "'driver' is missing"), ("", "key=value"),
        ("driver=memory,node-name=a,.x=1", "no key"),
    ])
    func `refuses nodes that make no sense`(keys: String, reason: String) {
        #expect(refusal { try servePlan(["--blockdev", keys, "--export", "name=a,node=a"]) }.contains(reason))
    }

    @Test(arguments: [
        (["--object", "secret,id=a"], "--object"),
        (["-c", "/dev/nbd0"], "--connect"), (["-d"], "--disconnect"),
        (["--selinux-label", "l"], "--selinux-label"),
    ])
    func `never ignores an option that it cannot follow`(arguments: [String], reason: String) {
        #expect(refusal { try servePlan(arguments + ["a"]) }.contains(reason))
    }

    // S-SRV-09
    @Test(arguments: [
        (["-p", "1"], "TCP port"), (["-b", "::"], "interface"), (["-k", "/s"], "Unix socket"), (["--single"], "--single"),
    ])
    func `takes no addresses when sockets are passed to it`(arguments: [String], reason: String) throws {
        #expect(refusal { try servePlan(arguments + ["a"], activated: ["unknown"]) }.contains(reason))
        #expect(try servePlan(["a"], activated: ["b", "a", "b"]).listeners.map(\.place) == [.activated(name: "b"), .activated(name: "a")])
        #expect(try servePlan(["a", "--no-list"], activated: ["b"]).listeners == [.init(place: .activated(name: "b"), isListable: false)])
    }
}
