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
    case negotiateStartTLS
    case negotiateStartTLSHandshake
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

    /// What can happen, without its values: the trace points that patterns are about.
    public enum Point: String, CaseIterable, Sendable {
        case negotiateBegin = "nbd_negotiate_begin"
        case negotiateSuccess = "nbd_negotiate_success"
        case negotiateOldStyle = "nbd_negotiate_old_style"
        case negotiateOptionsFlags = "nbd_negotiate_options_flags"
        case negotiateOptionsCheckMagic = "nbd_negotiate_options_check_magic"
        case negotiateOptionsCheckOption = "nbd_negotiate_options_check_option"
        case negotiateHandleExportName = "nbd_negotiate_handle_export_name_request"
        case negotiateNewStyleSizeFlags = "nbd_negotiate_new_style_size_flags"
        case negotiateHandleInfoRequests = "nbd_negotiate_handle_info_requests"
        case negotiateSendInfo = "nbd_negotiate_send_info"
        case negotiateHandleInfoBlockSize = "nbd_negotiate_handle_info_block_size"
        case negotiateSendReply = "nbd_negotiate_send_rep_len"
        case negotiateSendReplyError = "nbd_negotiate_send_rep_err"
        case negotiateSendReplyList = "nbd_negotiate_send_rep_list"
        case negotiateStartTLS = "nbd_negotiate_handle_starttls"
        case negotiateStartTLSHandshake = "nbd_negotiate_handle_starttls_handshake"
        case negotiateMetaContext = "nbd_negotiate_meta_context"
        case negotiateMetaQuerySkip = "nbd_negotiate_meta_query_skip"
        case negotiateMetaQueryReply = "nbd_negotiate_meta_query_reply"
        case receiveRequest = "nbd_receive_request"
        case receivePayload = "nbd_co_receive_request_payload_received"
        case alignCompliance = "nbd_co_receive_align_compliance"
        case extendedPayloadCompliance = "nbd_co_receive_ext_payload_compliance"
        case blockStatusPayloadCompliance = "nbd_co_receive_block_status_payload_compliance"
        case sendSimpleReply = "nbd_co_send_simple_reply"
        case sendChunkDone = "nbd_co_send_chunk_done"
        case sendChunkRead = "nbd_co_send_chunk_read"
        case sendChunkReadHole = "nbd_co_send_chunk_read_hole"
        case sendChunkError = "nbd_co_send_chunk_error"
        case sendExtents = "nbd_co_send_extents"
        case attached = "nbd_blk_aio_attached"
        case detached = "nbd_blk_aio_detach"
        case handshakeTimeout = "nbd_handshake_timer_cb"
    }

    public var point: Point { text.point }

    /// Name for patterns.
    public var name: String { point.rawValue }

    /// The event's values, as `key=value` words.
    public var detail: String { text.detail }

    private var text: (point: Point, detail: String) {
        switch self {
        case .negotiateBegin: (.negotiateBegin, "")
        case .negotiateSuccess: (.negotiateSuccess, "")
        case .negotiateOldStyle(let size, let flags): (.negotiateOldStyle, "size=\(size) flags=\(hex(flags.rawValue))")
        case .negotiateOptionsFlags(let flags): (.negotiateOptionsFlags, "flags=\(hex(flags.rawValue))")
        case .negotiateOptionsCheckMagic(let magic): (.negotiateOptionsCheckMagic, "magic=\(hex(magic))")
        case .negotiateOptionsCheckOption(let option, let count):
            (.negotiateOptionsCheckOption, "option=\(option.rawValue) (\(option)) length=\(count)")
        case .negotiateHandleExportName(let name): (.negotiateHandleExportName, "name='\(name.sanitized())'")
        case .negotiateNewStyleSizeFlags(let size, let flags):
            (.negotiateNewStyleSizeFlags, "size=\(size) flags=\(hex(flags.rawValue))")
        case .negotiateHandleInfoRequests(let types, let export):
            (
                .negotiateHandleInfoRequests,
                "export='\(export.sanitized())' count=\(types.count) requests=\(types.map(\.description).joined(separator: ","))"
            )
        case .negotiateSendInfo(let type, let count): (.negotiateSendInfo, "info=\(type.rawValue) (\(type)) length=\(count)")
        case .negotiateHandleInfoBlockSize(let sizes):
            (.negotiateHandleInfoBlockSize, "minimum=\(sizes.minimum) preferred=\(sizes.preferred) maximum=\(sizes.maximumPayload)")
        case .negotiateSendReply(let type, let option, let count):
            (.negotiateSendReply, "option=\(option.rawValue) (\(option)) type=\(hex(type.rawValue)) (\(type)) length=\(count)")
        case .negotiateSendReplyError(let text): (.negotiateSendReplyError, "text='\(text)'")
        case .negotiateSendReplyList(let export, let description):
            (.negotiateSendReplyList, "export='\(export.sanitized())' description='\(description.sanitized())'")
        case .negotiateStartTLS: (.negotiateStartTLS, "")
        case .negotiateStartTLSHandshake: (.negotiateStartTLSHandshake, "")
        case .negotiateMetaContext(let option, let export, let count):
            (.negotiateMetaContext, "option=\(option) export='\(export.sanitized())' queries=\(count)")
        case .negotiateMetaQuerySkip(let reason): (.negotiateMetaQuerySkip, "reason='\(reason)'")
        case .negotiateMetaQueryReply(let context, let id): (.negotiateMetaQueryReply, "context='\(context)' id=\(id)")
        case .receiveRequest(let header):
            (
                .receiveRequest,
                "cookie=\(hex(header.cookie)) flags=\(hex(header.flags.rawValue)) type=\(header.command.rawValue) (\(header.command))"
                    + " offset=\(header.offset) length=\(header.length)"
            )
        case .receivePayload(let cookie, let count): (.receivePayload, "cookie=\(hex(cookie)) length=\(count)")
        case .alignCompliance(let command, let offset, let length, let alignment):
            (.alignCompliance, "command=\(command) offset=\(offset) length=\(length) alignment=\(alignment)")
        case .extendedPayloadCompliance(let offset, let length):
            (.extendedPayloadCompliance, "offset=\(offset) length=\(length)")
        case .blockStatusPayloadCompliance(let offset, let length):
            (.blockStatusPayloadCompliance, "offset=\(offset) length=\(length)")
        case .sendSimpleReply(let cookie, let error, let count):
            (.sendSimpleReply, "cookie=\(hex(cookie)) error=\(error?.description ?? "0") length=\(count)")
        case .sendChunkDone(let cookie): (.sendChunkDone, "cookie=\(hex(cookie))")
        case .sendChunkRead(let cookie, let offset, let count):
            (.sendChunkRead, "cookie=\(hex(cookie)) offset=\(offset) length=\(count)")
        case .sendChunkReadHole(let cookie, let offset, let count):
            (.sendChunkReadHole, "cookie=\(hex(cookie)) offset=\(offset) length=\(count)")
        case .sendChunkError(let cookie, let error, let text):
            (.sendChunkError, "cookie=\(hex(cookie)) error=\(error) text='\(text)'")
        case .sendExtents(let cookie, let count, let context, let bytes, let isLast):
            (.sendExtents, "cookie=\(hex(cookie)) extents=\(count) context=\(context) length=\(bytes) last=\(isLast)")
        case .attached(let export): (.attached, "export='\(export.sanitized())'")
        case .detached(let export): (.detached, "export='\(export.sanitized())'")
        case .handshakeTimeout: (.handshakeTimeout, "")
        }
    }

    private func hex(_ value: some FixedWidthInteger) -> String { "0x" + String(value, radix: 16) }
}

extension TraceEvent: CustomStringConvertible {
    public var description: String {
        let text = text
        return text.detail.isEmpty ? text.point.rawValue : "\(text.point.rawValue) \(text.detail)"
    }
}

/// Somebody who watches a conversation.
public typealias Tracer = @Sendable (TraceEvent) -> Void
