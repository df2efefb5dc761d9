/// A server broke the rules of the transmission phase: what it sent, and to which request. The connection must be closed.
public struct ReplyViolation: Error, Equatable, Sendable, CustomStringConvertible {
    public enum Kind: Equatable, Sendable {
        /// Neither magic of a reply, or the one of a mode that was not agreed (P-REP-01, P-REP-03).
        case badMagic(UInt32)
        /// No request with this cookie is waiting: an invented one, or a chunk after DONE (P-REP-04).
        case unknownCookie
        /// READ must, and a successful BLOCK_STATUS can only, be answered by chunks (P-REP-02).
        case simpleReply
        /// P-REP-09.
        case unknownFlags(ChunkFlags)
        /// P-REP-10.
        case unknownChunk(ChunkType)
        /// A chunk that does not go with this command, or type 5 where type 6 belongs and the other way round (P-EXT-11).
        case misplacedChunk(ChunkType)
        /// The payload's length is impossible for the type.
        case badLength(ChunkType, UInt64)
        /// NONE without DONE (P-REP-06).
        case noneWithoutDone
        /// The extended header repeats another offset than the request's (P-EXT-10).
        case wrongRequestOffset(UInt64)
        /// Data or a hole outside of what was asked for (P-CMD-READ-2).
        case outsideRequest(offset: UInt64, byteCount: UInt64)
        /// Data or a hole where there was one already (P-CMD-READ-2).
        case overlap(offset: UInt64, byteCount: UInt64)
        /// Data or a hole at an offset whose error was told before (P-CMD-READ-5).
        case contentAfterError(offset: UInt64)
        /// More than one content chunk although DF was set (P-CMD-READ-3).
        case fragmented
        /// DONE came, but bytes of a READ never did (P-CMD-READ-2).
        case missingData(byteCount: UInt64)
        /// DONE came, but a selected context was not reported (P-CMD-BST-1).
        case missingContext(UInt32)
        /// A context that was not selected, or a second time the same (P-CMD-BST-1).
        case unexpectedContext(UInt32)
        /// An extent of length 0, or one that begins outside of the request, or REQ_ONE broken, or 64-bit flags of a 32-bit context
        /// (P-CMD-BST-2…4, P-EXT-12).
        case badExtent(index: Int)
        /// P-REP-07: an error chunk that reports success.
        case errorWithoutCode
        /// P-GEN-01.
        case badText
        /// P-REP-08.
        case errorOffsetOutsideRequest(UInt64)
        /// More chunks, errors or fragments than a decent server sends: we will not keep them.
        case tooManyChunks
    }

    public var kind: Kind
    /// nil: the reply could not be attributed.
    public var cookie: UInt64?
    public var command: Command?

    public init(_ kind: Kind, cookie: UInt64? = nil, command: Command? = nil) {
        self.kind = kind
        self.cookie = cookie
        self.command = command
    }

    public var description: String {
        let context = command.map { " in the reply to \($0)" } ?? ""
        let what =
            switch kind {
            case .badMagic(let magic): "reply magic 0x\(String(magic, radix: 16))"
            case .unknownCookie: "unknown cookie \(cookie ?? 0)"
            case .simpleReply: "a simple reply where chunks were agreed"
            case .unknownFlags(let flags): "chunk flags 0x\(String(flags.rawValue, radix: 16))"
            case .unknownChunk(let type): "chunk type \(type)"
            case .misplacedChunk(let type): "a chunk of type \(type)"
            case .badLength(let type, let byteCount): "a chunk of type \(type) with \(byteCount) bytes"
            case .noneWithoutDone: "NONE without DONE"
            case .wrongRequestOffset(let offset): "request offset \(offset), which is not the request's"
            case .outsideRequest(let offset, let count): "content of \(count) bytes at \(offset), outside of the request"
            case .overlap(let offset, let count): "content of \(count) bytes at \(offset), sent before"
            case .contentAfterError(let offset): "content for offset \(offset) after its error"
            case .fragmented: "several content chunks despite DF"
            case .missingData(let count): "\(count) bytes missing"
            case .missingContext(let id): "nothing about context \(id)"
            case .unexpectedContext(let id): "context \(id), unknown or repeated"
            case .badExtent(let index): "extent \(index) breaks the rules"
            case .errorWithoutCode: "an error without code"
            case .badText: "an error text that is not UTF-8"
            case .errorOffsetOutsideRequest(let offset): "an error at \(offset), outside of the request"
            case .tooManyChunks: "too many chunks"
            }
        return "the server broke the protocol: \(what)\(context)"
    }
}
