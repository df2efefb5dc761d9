import Synchronization
import Testing

@testable import NBDProtocol

/// What somebody who watches has seen.
private final class Watch: Sendable {
    private let seen = Mutex<[TraceEvent]>([])
    var tracer: Tracer { { [self] event in seen.withLock { $0.append(event) } } }
    var events: [TraceEvent] { seen.withLock { $0 } }
    var lines: [String] { events.map(\.description) }
}

/// REFERENCE section 14: each event with the values that the reference tells, under the name it has there.
@Suite struct `Trace events of the handshake` {
    // S-TRC-01, S-TRC-03, S-TRC-05, S-TRC-07…12
    @Test func `GO tells of flags, option, requests, each info and its end`() {
        let watch = Watch()
        var harness = HandshakeHarness(trace: watch.tracer)
        harness.begin()
        _ = harness.option(.go, infoData("disk", [1, 3, 77]))
        let flags = String(HandshakeHarness.disk.flags.rawValue, radix: 16)
        #expect(
            watch.lines == [
                "nbd_negotiate_begin", "nbd_negotiate_options_flags flags=0x3",
                "nbd_negotiate_options_check_option option=7 (GO) length=16",
                "nbd_negotiate_handle_info_requests export='disk' count=3 requests=NAME,BLOCK_SIZE,unknown 77",
                "nbd_negotiate_send_info info=1 (NAME) length=4", "nbd_negotiate_send_rep_len option=7 (GO) type=0x3 (INFO) length=6",
                "nbd_negotiate_send_info info=2 (DESCRIPTION) length=6",
                "nbd_negotiate_send_rep_len option=7 (GO) type=0x3 (INFO) length=8",
                "nbd_negotiate_handle_info_block_size minimum=1 preferred=4096 maximum=33554432",
                "nbd_negotiate_send_info info=3 (BLOCK_SIZE) length=12",
                "nbd_negotiate_send_rep_len option=7 (GO) type=0x3 (INFO) length=14",
                "nbd_negotiate_new_style_size_flags size=1048576 flags=0x\(flags)",
                "nbd_negotiate_send_info info=0 (EXPORT) length=10", "nbd_negotiate_send_rep_len option=7 (GO) type=0x3 (INFO) length=12",
                "nbd_negotiate_send_rep_len option=7 (GO) type=0x1 (ACK) length=0", "nbd_negotiate_success",
            ])
    }

    // S-TRC-06
    @Test func `EXPORT_NAME tells the name and what it means`() {
        let watch = Watch()
        var harness = HandshakeHarness(trace: watch.tracer)
        harness.begin()
        harness.send(HandshakeHarness.optionBytes(1, Array("disk".utf8)))
        #expect(
            watch.events.map(\.name).suffix(3) == [
                "nbd_negotiate_handle_export_name_request", "nbd_negotiate_new_style_size_flags", "nbd_negotiate_success",
            ])
        #expect(watch.lines.contains("nbd_negotiate_handle_export_name_request name='disk'"))
    }

    // S-TRC-04
    @Test func `a wrong magic is shown`() {
        let watch = Watch()
        var harness = HandshakeHarness(trace: watch.tracer)
        harness.begin()
        harness.send(bigEndian(UInt64(0xDEAD_BEEF)))
        #expect(watch.lines.last == "nbd_negotiate_options_check_magic magic=0xdeadbeef")
    }

    // S-TRC-12, S-TRC-13
    @Test func `LIST tells of each export, a refusal its text`() {
        let watch = Watch()
        var harness = HandshakeHarness(trace: watch.tracer)
        harness.begin()
        _ = harness.option(.list)
        _ = harness.option(.info, infoData("gone"))
        #expect(
            watch.lines.filter { $0.hasPrefix("nbd_negotiate_send_rep_list") } == [
                "nbd_negotiate_send_rep_list export='disk' description='a disk'",
                "nbd_negotiate_send_rep_list export='blocky' description=''",
            ])
        #expect(watch.lines.contains { $0.hasPrefix("nbd_negotiate_send_rep_err text='") && $0.contains("gone") })
    }

    // S-TRC-15, S-TRC-16
    @Test func `metadata contexts are told by query and by answer`() {
        let watch = Watch()
        var harness = HandshakeHarness(trace: watch.tracer)
        harness.begin()
        _ = harness.option(.structuredReply)
        let long = String(repeating: "q", count: 4097)
        _ = harness.option(.setMetaContext, metaData("blocky", ["base:allocation", long, "qemu:dirty-bitmap:b1"]))
        #expect(
            watch.lines.filter { $0.contains("_meta_") } == [
                "nbd_negotiate_meta_context option=SET_META_CONTEXT export='blocky' queries=3",
                "nbd_negotiate_meta_query_skip reason='query of 4097 bytes'",
                "nbd_negotiate_meta_query_reply context='base:allocation' id=0",
                "nbd_negotiate_meta_query_reply context='qemu:dirty-bitmap:b1' id=3",
            ])
    }

    // P-GEN-06: what a client says cannot forge a line of a log.
    @Test func `a hostile name is shown cleaned and short`() {
        let watch = Watch()
        var harness = HandshakeHarness(trace: watch.tracer)
        harness.begin()
        _ = harness.option(.info, infoData("a\n\u{1B}[31m\u{202E}b" + String(repeating: "x", count: 1000)))
        for line in watch.lines {
            #expect(line.utf8.count < 400 && !line.unicodeScalars.contains { $0.value < 0x20 || $0 == "\u{202E}" }, "\(line)")
        }
    }

    // S-TRC-02, S-TRC-29, S-NEW-18: the names are those of today's QEMU.
    @Test(arguments: [
        (TraceEvent.negotiateOldStyle(size: 512, flags: .hasFlags), "nbd_negotiate_old_style size=512 flags=0x1"),
        (.handshakeTimeout, "nbd_handshake_timer_cb"),
        (.extendedPayloadCompliance(offset: 1, length: 2), "nbd_co_receive_ext_payload_compliance offset=1 length=2"),
        (
            .blockStatusPayloadCompliance(offset: 1, length: 1 << 40),
            "nbd_co_receive_block_status_payload_compliance offset=1 length=1099511627776"
        ),
        (.sendChunkDone(cookie: 0xAB), "nbd_co_send_chunk_done cookie=0xab"),
    ])
    func `later events have their names and 64-bit lengths`(event: TraceEvent, line: String) {
        #expect(event.description == line)
    }
}

@Suite struct `Trace points` {
    /// One event of each; the compiler sees to it that none is left out.
    private func event(_ point: TraceEvent.Point) -> TraceEvent {
        switch point {
        case .negotiateBegin: .negotiateBegin
        case .negotiateSuccess: .negotiateSuccess
        case .negotiateOldStyle: .negotiateOldStyle(size: 1, flags: .hasFlags)
        case .negotiateOptionsFlags: .negotiateOptionsFlags([])
        case .negotiateOptionsCheckMagic: .negotiateOptionsCheckMagic(1)
        case .negotiateOptionsCheckOption: .negotiateOptionsCheckOption(.go, byteCount: 1)
        case .negotiateHandleExportName: .negotiateHandleExportName("e")
        case .negotiateNewStyleSizeFlags: .negotiateNewStyleSizeFlags(size: 1, flags: .hasFlags)
        case .negotiateHandleInfoRequests: .negotiateHandleInfoRequests([], export: "e")
        case .negotiateSendInfo: .negotiateSendInfo(.export, byteCount: 1)
        case .negotiateHandleInfoBlockSize: .negotiateHandleInfoBlockSize(BlockSizes(minimum: 1, preferred: 4096, maximumPayload: 1 << 25))
        case .negotiateSendReply: .negotiateSendReply(.ack, to: .go, byteCount: 1)
        case .negotiateSendReplyError: .negotiateSendReplyError("t")
        case .negotiateSendReplyList: .negotiateSendReplyList(export: "e", description: "d")
        case .negotiateStartTLS: .negotiateStartTLS
        case .negotiateStartTLSHandshake: .negotiateStartTLSHandshake
        case .negotiateMetaContext: .negotiateMetaContext(.go, export: "e", queryCount: 1)
        case .negotiateMetaQuerySkip: .negotiateMetaQuerySkip(reason: "r")
        case .negotiateMetaQueryReply: .negotiateMetaQueryReply(context: "c", id: 1)
        case .receiveRequest: .receiveRequest(RequestHeader(command: .read, cookie: 1))
        case .receivePayload: .receivePayload(cookie: 1, byteCount: 1)
        case .alignCompliance: .alignCompliance(.read, offset: 1, length: 1, alignment: 1)
        case .extendedPayloadCompliance: .extendedPayloadCompliance(offset: 1, length: 1)
        case .blockStatusPayloadCompliance: .blockStatusPayloadCompliance(offset: 1, length: 1)
        case .sendSimpleReply: .sendSimpleReply(cookie: 1, error: nil, byteCount: 1)
        case .sendChunkDone: .sendChunkDone(cookie: 1)
        case .sendChunkRead: .sendChunkRead(cookie: 1, offset: 1, byteCount: 1)
        case .sendChunkReadHole: .sendChunkReadHole(cookie: 1, offset: 1, byteCount: 1)
        case .sendChunkError: .sendChunkError(cookie: 1, error: .inputOutput, text: "t")
        case .sendExtents: .sendExtents(cookie: 1, count: 1, context: 1, byteCount: 1, isLast: true)
        case .attached: .attached(export: "e")
        case .detached: .detached(export: "e")
        case .handshakeTimeout: .handshakeTimeout
        }
    }

    @Test(arguments: TraceEvent.Point.allCases)
    func `are the names of the events that can happen`(point: TraceEvent.Point) {
        #expect(event(point).point == point)
        #expect(event(point).name == point.rawValue)
        #expect(event(point).description.split(separator: " ").first.map(String.init) == point.rawValue)
    }
}
