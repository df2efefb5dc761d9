import Logging
import NBDProtocol
import Testing

@testable import NBDTool

@Suite struct `A log line` {
    private func line(_ message: String, _ metadata: Logger.Metadata? = nil) -> String {
        var handler = ToolLogHandler(program: "nbd", isVerbose: false)
        handler[metadataKey: "server"] = "s"
        let event = LogEvent(level: .warning, message: "\(message)", metadata: metadata, source: "t", file: "f", function: "f", line: 1)
        return handler.line(event)
    }

    @Test func `has a level, a message and sorted values`() {
        #expect(line("closed", ["peer": "::1", "error": "bad"]) == "nbd: warning: closed error=bad peer=::1 server=s")
    }

    @Test func `stays one line whatever a stranger sends`() {
        #expect(
            line("name 'a\n\u{1B}[31mnbd: error: forged'", ["p\n": "q\r"])
                == "nbd: warning: name 'a??[31mnbd: error: forged' p?=q? server=s")
        #expect(line(String(repeating: "x", count: 100_000)).utf8.count < 1100)
    }

    @Test func `of little importance needs -v`() {
        #expect(ToolLogHandler(program: "nbd", isVerbose: false).logLevel == .notice)
        #expect(ToolLogHandler(program: "nbd", isVerbose: true).logLevel == .debug)
    }
}

@Suite struct `A trace line` {
    @Test func `has a time, a connection, a peer and the event`() {
        #expect(
            TraceWriter.line(.negotiateBegin, connection: 3, peer: "192.0.2.7:40123", time: 1_732_162_496.004233)
                == "1732162496.004233 #3 192.0.2.7:40123 nbd_negotiate_begin")
        #expect(
            TraceWriter.line(.attached(export: "a\nb"), connection: 1, peer: "unix", time: 0)
                == "0.000000 #1 unix nbd_blk_aio_attached export='a?b'")
    }

    @Test func `needs a file that can be written`() throws {
        var plan = TracePlan()
        try plan.add("*,file=/nonexistent/trace")
        #expect(throws: ToolError.runtime("cannot open trace file '/nonexistent/trace': No such file or directory")) {
            try TraceWriter(plan)
        }
    }
}

@Suite struct `Formats that are not raw` {
    @Test(
        arguments: [
            ("qcow2", 0, [0x51, 0x46, 0x49, 0xFB, 0, 0, 0, 3]), ("vdi", 64, [0x7F, 0x10, 0xDA, 0xBE]), ("vhdx", 0, Array("vhdxfile".utf8)),
            ("vmdk", 0, Array("KDMV".utf8)), ("vpc", 0, Array("conectix".utf8)), ("parallels", 0, Array("WithoutFreeSpace".utf8)),
            ("qed", 0, Array("QED\0".utf8)),
        ] as [(String, Int, [UInt8])])
    func `are recognised by their first bytes`(format: String, offset: Int, magic: [UInt8]) {
        var head = [UInt8](repeating: 0, count: 512)
        head.replaceSubrange(offset..<offset + magic.count, with: magic)
        #expect(FormatGuard.format(of: head) == format)
        head[offset] ^= 1
        #expect(FormatGuard.format(of: head) == nil)
    }

    @Test func `are not seen in short or empty files`() {
        #expect(FormatGuard.format(of: []) == nil)
        #expect(FormatGuard.format(of: [0x51, 0x46, 0x49]) == nil)
    }
}
