import NBDProtocol
import NBDServer
import Testing

@testable import NBDTool

@Suite struct `Sizes as people write them` {
    @Test(arguments: [
        ("0", 0), ("1", 1), ("512", 512), ("1b", 1), ("1K", 1024), ("1k", 1024), ("1KB", 1024), ("1KiB", 1024), ("3M", 3 << 20),
        ("16GiB", 16 << 30), ("2T", 2 << 40), ("1P", 1 << 50), ("7E", 7 << 60), ("0x10", 16), ("0XfF", 255),
        ("9223372036854775807", UInt64(Int64.max)), ("0x7fffffffffffffff", UInt64(Int64.max)),
    ])
    func `are read`(text: String, size: UInt64) {
        #expect(ByteSize.parse(text) == size)
    }

    // S-LIM-14: nothing is larger than 2^63 - 1.
    @Test(arguments: [
        "", " ", "K", "-1", "+1", "1.5G", "1KK", "1Z", "1iB", "1 K", "0x", "0x1K", "0x-1", "1e3", "٣", "9223372036854775808", "8E",
        "16777216T", "18446744073709551616", "99999999999999999999999999E", "0x8000000000000000", "1K\n",
    ])
    func `are refused`(text: String) {
        #expect(ByteSize.parse(text) == nil)
    }

    @Test(arguments: [("0", 0), ("010", 8), ("0x10", 16), ("1048576", 1_048_576)] as [(String, UInt64)])
    func `of qemu-nbd -o are read as strtoull does`(text: String, size: UInt64) {
        #expect(ByteSize.parseCount(text) == size)
    }

    @Test(arguments: ["", "1M", "-1", "1x", "08", "99999999999999999999"])
    func `of qemu-nbd -o are refused`(text: String) {
        #expect(ByteSize.parseCount(text) == nil)
    }
}

@Suite struct `Lists of keys and values` {
    @Test func `hand out each value once`() throws {
        var list = try KeyValueList("a=1,b=x=y,c=", context: "--x")
        #expect(list.take("b") == "x=y")
        #expect(list.take("b") == nil)
        #expect(list.take("c") == "")
        #expect(list.take("a") == "1")
        try list.finish()
    }

    @Test(arguments: [
        ("a=1,,2,b=3", "1,2", "3"), ("a=,,,b=3", ",", "3"), ("a=,,,,,b=3", ",,", "3"), ("a=1,,,b=3", "1,", "3"), ("b=3,a=1,", "1", "3"),
        ("b=3,a=x,,", "x,", "3"),
    ])
    func `write a comma as two`(text: String, a: String, b: String) throws {
        var list = try KeyValueList(text, context: "--x")
        #expect(list.take("a") == a)
        #expect(list.take("b") == b)
    }

    @Test(arguments: ["", ",", "a", "=1", "a=1,b", "a=1,a=2", "a=1, =2,=3"])
    func `are refused when malformed`(text: String) {
        #expect(throws: ToolError.self) { try KeyValueList(text, context: "--x").finish() }
    }

    @Test func `name the key that nobody knows`() throws {
        let list = try KeyValueList("colour=red", context: "--export")
        #expect(throws: ToolError.usage("--export: unknown key 'colour'")) { try list.finish() }
    }

    @Test(arguments: [("on", true), ("yes", true), ("true", true), ("off", false), ("no", false), ("false", false)])
    func `read switches`(text: String, value: Bool) throws {
        var list = try KeyValueList("s=\(text)", context: "--x")
        #expect(try list.takeSwitch("s") == value)
    }

    @Test func `refuse other words for switches and bad sizes`() throws {
        var list = try KeyValueList("s=maybe,n=12Q", context: "--x")
        #expect(throws: ToolError.usage("--x: 's' is on or off, not 'maybe'")) { try list.takeSwitch("s") }
        #expect(throws: ToolError.usage("--x: invalid size '12Q' for 'n'")) { try list.takeSize("n") }
    }
}

@Suite struct `Trace patterns` {
    @Test(arguments: [
        ("*", "nbd_trip", true), ("nbd_*", "nbd_trip", true), ("nbd_trip", "nbd_trip", true), ("n?d_trip", "nbd_trip", true),
        ("*_send_*_read", "nbd_co_send_chunk_read", true), ("nbd_*_read", "nbd_co_send_chunk_read_hole", false), ("", "", true),
        ("**", "", true), ("?", "", false), ("nbd", "nbd_trip", false), ("trip", "nbd_trip", false), ("*trip*", "nbd_trip", true),
        ("*a*b*c", "xaxbxbxc", true), ("*a*b*c", "xaxcxb", false),
    ])
    func `match whole names`(pattern: String, name: String, isMatch: Bool) {
        #expect(Glob(pattern).matches(name) == isMatch)
    }

    @Test func `with many stars take no exponential time`() {
        let pattern = String(repeating: "*a", count: 200) + "b"
        #expect(!Glob(pattern).matches(String(repeating: "a", count: 2000)))
    }

    @Test func `come with or without a key, and with a file`() throws {
        var plan = TracePlan()
        #expect(!plan.isOn)
        try plan.add("nbd_negotiate_*")
        try plan.add("enable=*read*,file=/tmp/a,,b")
        #expect(plan.isOn)
        #expect(plan.file == "/tmp/a,b")
        #expect(plan.points.isSuperset(of: [.negotiateBegin, .sendChunkRead]))
        #expect(!plan.points.contains(.receiveRequest))
        #expect(plan.warnings.isEmpty)
    }

    @Test func `come from files, too, one a line, in their order`() throws {
        var plan = TracePlan()
        try plan.add("nbd_trip,events=a")
        try plan.add("-*_begin,events=b")
        try plan.load { path throws(ToolError) in
            switch path {
            case "a": Array("# comment\r\n\r\n  nbd_negotiate_* \r\n-*_info\nnbd_?\n".utf8)
            case "b": Array("nbd_receive_request\n\u{1B}[x".utf8) + [0xFF]
            default: throw .runtime("no \(path)")
            }
        }
        #expect(plan.points.isSuperset(of: [.negotiateSuccess, .receiveRequest]))
        #expect(plan.points.isDisjoint(with: [.negotiateBegin, .negotiateSendInfo, .sendChunkRead]))
        #expect(
            plan.warnings == [
                "--trace: no trace event is called 'nbd_trip' (-T help lists them)",
                "a:5: no trace event is called 'nbd_?' (-T help lists them)",
                "b:2: no trace event is called '?[x\u{FFFD}' (-T help lists them)",
            ])
    }

    @Test func `in a file that cannot be read are an error`() throws {
        var plan = TracePlan()
        try plan.add("events=/nonexistent/events")
        #expect(plan.isOn)
        #expect(throws: ToolError.runtime("cannot open '/nonexistent/events': No such file or directory")) {
            try plan.load { path throws(ToolError) in try HostProcess.contents(of: path, limit: TracePlan.byteLimit) }
        }
    }

    @Test func `can be looked up`() {
        #expect(TracePlan.asksForNames("help"))
        #expect(TracePlan.asksForNames("?"))
        #expect(!TracePlan.asksForNames("help*"))
        let names = TracePlan.names.split(separator: "\n")
        #expect(names.contains("nbd_receive_request"))
        #expect(names.count == TraceEvent.Point.allCases.count)
    }

    @Test(arguments: ["", "-", "enable=", "enable=*,file=", "*,events=", "*,bogus", "*,enable=x"])
    func `are refused when malformed`(text: String) {
        var plan = TracePlan()
        #expect(throws: ToolError.self) { try plan.add(text) }
    }
}
