/// One step of a conversation, for people who watch it (REFERENCE section 14).
///
/// Events carry values, not text: who watches decides what to print. Nothing is built when nobody does. Where QEMU has an event of the
/// same content, the name is QEMU's, so that `-T` patterns written for qemu-nbd keep their meaning.
public enum TraceEvent: Sendable {
    case negotiateBegin
    case negotiateSuccess
    case negotiateOldStyle(size: UInt64, flags: TransmissionFlags)
    case negotiateOptionsFlags(ClientFlags)
    case negotiateOptionsCheckMagic(UInt64)
    case negotiateOptionsCheckOption(OptionType, byteCount: UInt32)
    case negotiateHandleExportName(String)
    case negotiateNewStyleSizeFlags(size: UInt64, flags: TransmissionFlags)
    case negotiateHandleInfoRequests([InfoType], export: String)
    case negotiateSendInfo(InfoType, byteCount: Int)
    case negotiateHandleInfoBlockSize(BlockSizes)
    case negotiateSendReply(OptionReplyType, to: OptionType, byteCount: Int)
    case negotiateSendReplyError(String)
    case negotiateSendReplyList(export: String, description: String)
    case negotiateMetaContext(OptionType, export: String, queryCount: UInt32)
    case negotiateMetaQuerySkip(reason: String)
    case negotiateMetaQueryReply(context: String, id: UInt32)
    case receiveRequest(RequestHeader)
    case receivePayload(cookie: UInt64, byteCount: Int)
    case alignCompliance(Command, offset: UInt64, length: UInt64, alignment: UInt32)
    case extendedPayloadCompliance(offset: UInt64, length: UInt64)
    case blockStatusPayloadCompliance(offset: UInt64, length: UInt64)
    case sendSimpleReply(cookie: UInt64, error: NBDError?, byteCount: Int)
    case sendChunkDone(cookie: UInt64)
    case sendChunkRead(cookie: UInt64, offset: UInt64, byteCount: Int)
    case sendChunkReadHole(cookie: UInt64, offset: UInt64, byteCount: UInt64)
    case sendChunkError(cookie: UInt64, error: NBDError, text: String)
    case sendExtents(cookie: UInt64, count: Int, context: UInt32, byteCount: UInt64, isLast: Bool)
    /// The connection has a home; `export` is being served on it.
    case attached(export: String)
    case detached(export: String)
    case handshakeTimeout

    /// Name for patterns.
    public var name: String { text.name }

    /// The event's values, as `key=value` words.
    public var detail: String { text.detail }

    private var text: (name: String, detail: String) {
        switch self {
        case .negotiateBegin: ("nbd_negotiate_begin", "")
        case .negotiateSuccess: ("nbd_negotiate_success", "")
        case .negotiateOldStyle(let size, let flags): ("nbd_negotiate_old_style", "size=\(size) flags=\(hex(flags.rawValue))")
        case .negotiateOptionsFlags(let flags): ("nbd_negotiate_options_flags", "flags=\(hex(flags.rawValue))")
        case .negotiateOptionsCheckMagic(let magic): ("nbd_negotiate_options_check_magic", "magic=\(hex(magic))")
        case .negotiateOptionsCheckOption(let option, let count):
            ("nbd_negotiate_options_check_option", "option=\(option.rawValue) (\(option)) length=\(count)")
        case .negotiateHandleExportName(let name): ("nbd_negotiate_handle_export_name_request", "name='\(name.sanitized())'")
        case .negotiateNewStyleSizeFlags(let size, let flags):
            ("nbd_negotiate_new_style_size_flags", "size=\(size) flags=\(hex(flags.rawValue))")
        case .negotiateHandleInfoRequests(let types, let export):
            (
                "nbd_negotiate_handle_info_requests",
                "export='\(export.sanitized())' count=\(types.count) requests=\(types.map(\.description).joined(separator: ","))"
            )
        case .negotiateSendInfo(let type, let count): ("nbd_negotiate_send_info", "info=\(type.rawValue) (\(type)) length=\(count)")
        case .negotiateHandleInfoBlockSize(let sizes):
            ("nbd_negotiate_handle_info_block_size", "minimum=\(sizes.minimum) preferred=\(sizes.preferred) maximum=\(sizes.maximumPayload)")
        case .negotiateSendReply(let type, let option, let count):
            ("nbd_negotiate_send_rep_len", "option=\(option.rawValue) (\(option)) type=\(hex(type.rawValue)) (\(type)) length=\(count)")
        case .negotiateSendReplyError(let text): ("nbd_negotiate_send_rep_err", "text='\(text)'")
        case .negotiateSendReplyList(let export, let description):
            ("nbd_negotiate_send_rep_list", "export='\(export.sanitized())' description='\(description.sanitized())'")
        case .negotiateMetaContext(let option, let export, let count):
            ("nbd_negotiate_meta_context", "option=\(option) export='\(export.sanitized())' queries=\(count)")
        case .negotiateMetaQuerySkip(let reason): ("nbd_negotiate_meta_query_skip", "reason='\(reason)'")
        case .negotiateMetaQueryReply(let context, let id): ("nbd_negotiate_meta_query_reply", "context='\(context)' id=\(id)")
        case .receiveRequest(let header):
            (
                "nbd_receive_request",
                "cookie=\(hex(header.cookie)) flags=\(hex(header.flags.rawValue)) type=\(header.command.rawValue) (\(header.command))"
                    + " offset=\(header.offset) length=\(header.length)"
            )
        case .receivePayload(let cookie, let count): ("nbd_co_receive_request_payload_received", "cookie=\(hex(cookie)) length=\(count)")
        case .alignCompliance(let command, let offset, let length, let alignment):
            ("nbd_co_receive_align_compliance", "command=\(command) offset=\(offset) length=\(length) alignment=\(alignment)")
        case .extendedPayloadCompliance(let offset, let length):
            ("nbd_co_receive_ext_payload_compliance", "offset=\(offset) length=\(length)")
        case .blockStatusPayloadCompliance(let offset, let length):
            ("nbd_co_receive_block_status_payload_compliance", "offset=\(offset) length=\(length)")
        case .sendSimpleReply(let cookie, let error, let count):
            ("nbd_co_send_simple_reply", "cookie=\(hex(cookie)) error=\(error?.description ?? "0") length=\(count)")
        case .sendChunkDone(let cookie): ("nbd_co_send_chunk_done", "cookie=\(hex(cookie))")
        case .sendChunkRead(let cookie, let offset, let count):
            ("nbd_co_send_chunk_read", "cookie=\(hex(cookie)) offset=\(offset) length=\(count)")
        case .sendChunkReadHole(let cookie, let offset, let count):
            ("nbd_co_send_chunk_read_hole", "cookie=\(hex(cookie)) offset=\(offset) length=\(count)")
        case .sendChunkError(let cookie, let error, let text):
            ("nbd_co_send_chunk_error", "cookie=\(hex(cookie)) error=\(error) text='\(text)'")
        case .sendExtents(let cookie, let count, let context, let bytes, let isLast):
            ("nbd_co_send_extents", "cookie=\(hex(cookie)) extents=\(count) context=\(context) length=\(bytes) last=\(isLast)")
        case .attached(let export): ("nbd_blk_aio_attached", "export='\(export.sanitized())'")
        case .detached(let export): ("nbd_blk_aio_detach", "export='\(export.sanitized())'")
        case .handshakeTimeout: ("nbd_handshake_timer_cb", "")
        }
    }

    private func hex(_ value: some FixedWidthInteger) -> String { "0x" + String(value, radix: 16) }
}

extension TraceEvent: CustomStringConvertible {
    public var description: String {
        let text = text
        return text.detail.isEmpty ? text.name : "\(text.name) \(text.detail)"
    }
}

/// Somebody who watches a conversation.
public typealias Tracer = @Sendable (TraceEvent) -> Void
