import Block
import NBDProtocol
import NIOCore

/// Writes the replies to one request, in whichever of the three forms the client agreed to.
struct ReplyEncoder {
    let mode: ReplyMode
    let cookie: UInt64
    /// Offset of the request: extended headers repeat it in every chunk (P-EXT-10).
    let offset: UInt64
    let trace: Tracer?

    /// Longest text of an error reply, in characters: QEMU's client closes on payloads above 1000 bytes (P-REP-07).
    static let textLimit = 200

    /// Bytes in front of the data of a READ.
    var dataHeaderByteCount: Int {
        mode == .simple ? SimpleReply.byteCount : ChunkHeader.byteCount(mode) + 8
    }

    /// Success without data: a simple reply also when structured replies are on (S-CMD-28), NONE with extended headers.
    func success(into buffer: inout ByteBuffer) {
        if mode == .extended {
            done(into: &buffer)
        } else {
            trace?(.sendSimpleReply(cookie: cookie, error: nil, byteCount: 0))
            buffer.writeWithOutputRawSpan(minimumWritableBytes: SimpleReply.byteCount) { SimpleReply(cookie: cookie).encode(into: &$0) }
        }
    }

    /// The NONE chunk that ends a reply.
    func done(into buffer: inout ByteBuffer) {
        trace?(.sendChunkDone(cookie: cookie))
        buffer.writeWithOutputRawSpan(minimumWritableBytes: 32) { chunk(.none, flags: .done, byteCount: 0, into: &$0) }
    }

    /// - Parameter failedAt: where in the export it happened, if that is known (ERROR_OFFSET, P-REP-08).
    func failure(_ error: NBDError, _ text: String, failedAt: UInt64? = nil, into buffer: inout ByteBuffer) {
        guard mode != .simple else {
            trace?(.sendSimpleReply(cookie: cookie, error: error, byteCount: 0))
            buffer.writeWithOutputRawSpan(minimumWritableBytes: SimpleReply.byteCount) {
                SimpleReply(cookie: cookie, error: error).encode(into: &$0)
            }
            return
        }
        let text = text.sanitized(limit: Self.textLimit)
        trace?(.sendChunkError(cookie: cookie, error: error, text: text))
        let count = text.utf8.count
        buffer.writeWithOutputRawSpan(minimumWritableBytes: 32 + 14 + count) { output in
            chunk(failedAt == nil ? .error : .errorOffset, flags: .done, byteCount: 6 + count + (failedAt == nil ? 0 : 8), into: &output)
            output.appendBigEndian(error.rawValue)
            output.appendBigEndian(UInt16(count))
            for byte in text.utf8 { output.appendBigEndian(byte) }
            if let failedAt { output.appendBigEndian(failedAt) }
        }
    }

    func dataHeader(position: UInt64, count: Int, isLast: Bool, into buffer: inout ByteBuffer) {
        buffer.writeWithOutputRawSpan(minimumWritableBytes: dataHeaderByteCount) {
            dataHeader(position: position, count: count, isLast: isLast, into: &$0)
        }
    }

    /// What goes in front of `count` bytes of data at `position` of the export.
    func dataHeader(position: UInt64, count: Int, isLast: Bool, into output: inout OutputRawSpan) {
        if mode == .simple {
            SimpleReply(cookie: cookie).encode(into: &output)
        } else {
            chunk(.offsetData, flags: isLast ? .done : [], byteCount: 8 + count, into: &output)
            output.appendBigEndian(position)
        }
    }

    /// To be called once the data is there: a fast read may be given up after its header was written.
    func traceData(position: UInt64, count: Int) {
        trace?(
            mode == .simple
                ? .sendSimpleReply(cookie: cookie, error: nil, byteCount: count)
                : .sendChunkRead(cookie: cookie, offset: position, byteCount: count))
    }

    /// - Precondition: `count` fits in 32 bits, as every READ does.
    func hole(position: UInt64, count: UInt64, isLast: Bool, into buffer: inout ByteBuffer) {
        trace?(.sendChunkReadHole(cookie: cookie, offset: position, byteCount: count))
        buffer.writeWithOutputRawSpan(minimumWritableBytes: 44) { output in
            chunk(.offsetHole, flags: isLast ? .done : [], byteCount: 12, into: &output)
            output.appendBigEndian(position)
            output.appendBigEndian(UInt32(count))
        }
    }

    /// Extents of one context, with 64-bit lengths if and only if extended headers are on (P-EXT-11).
    func extents(_ list: ExtentList, context: UInt32, isLast: Bool, into buffer: inout ByteBuffer) {
        let extents = list.extents
        trace?(.sendExtents(cookie: cookie, count: extents.count, context: context, byteCount: list.byteCount, isLast: isLast))
        let flags: ChunkFlags = isLast ? .done : []
        let byteCount = mode == .extended ? 8 + 16 * extents.count : 4 + 8 * extents.count
        buffer.writeWithOutputRawSpan(minimumWritableBytes: 32 + byteCount) { output in
            chunk(mode == .extended ? .blockStatusExtended : .blockStatus, flags: flags, byteCount: byteCount, into: &output)
            output.appendBigEndian(context)
            if mode == .extended {
                output.appendBigEndian(UInt32(extents.count))
                for extent in extents {
                    output.appendBigEndian(extent.count)
                    output.appendBigEndian(UInt64(extent.status.rawValue))
                }
            } else {
                // The request had a 32-bit length and no extent runs beyond it (S-BST-05).
                for extent in extents {
                    output.appendBigEndian(UInt32(extent.count))
                    output.appendBigEndian(extent.status.rawValue)
                }
            }
        }
    }

    private func chunk(_ type: ChunkType, flags: ChunkFlags, byteCount: Int, into output: inout OutputRawSpan) {
        ChunkHeader(type, flags: flags, cookie: cookie, requestOffset: offset, byteCount: UInt64(byteCount)).encode(
            into: &output, mode: mode)
    }
}

extension NBDError {
    /// The one place where a device's failure becomes a number on the wire (REFERENCE section 5, P-ERR).
    ///
    /// - Parameter isFastZero: ENOTSUP is for FAST_ZERO alone (P-ERR-06).
    init(_ error: BlockError, command: Command, isFastZero: Bool) {
        self =
            switch error.kind {
            case .inputOutput: .inputOutput
            case .noSpace: .noSpace
            case .readOnly: .notPermitted
            case .outOfRange: command == .write || command == .writeZeroes ? .noSpace : .invalid
            case .invalid: .invalid
            case .unsupported: isFastZero ? .notSupported : .invalid
            case .tooLarge: command == .read ? .overflow : .invalid
            case .noMemory: .noMemory
            case .shuttingDown: .shutdown
            }
    }
}
