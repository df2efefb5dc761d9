public import NBDProtocol

/// A request as it goes on the wire. Nothing is checked: a test may send what no client should.
public struct NBDRequest: Sendable {
    public var command: Command
    public var flags: CommandFlags
    /// In bytes.
    public var offset: UInt64
    /// As in the header; in compact modes only its low 32 bits are sent.
    public var length: UInt64
    /// Follows the header as it is, also when it does not fit the length.
    public var payload: [UInt8]
    /// nil: the next free one.
    public var cookie: UInt64?
    /// Only for a BLOCK_STATUS with payload: the range and the contexts it asks for, which the reply is checked against.
    public var effectByteCount: UInt64?
    public var contextIDs: [UInt32]?

    public init(
        _ command: Command, flags: CommandFlags = [], offset: UInt64 = 0, length: UInt64 = 0, payload: [UInt8] = [], cookie: UInt64? = nil
    ) {
        self.command = command
        self.flags = flags
        self.offset = offset
        self.length = length
        self.payload = payload
        self.cookie = cookie
    }
}

extension NBDClient {
    /// Sends a request as it is; gives the reply also when it is an error.
    ///
    /// A command that the server does not answer at all (DISC) waits until the connection is closed.
    ///
    /// - Throws: `NBDClientError` when the connection is lost or the server breaks the protocol.
    public func request(_ request: NBDRequest) async throws -> NBDReply { try await onLoop { $0.submit(request) } }

    /// The bytes at `offset`.
    ///
    /// - Throws: `ReplyError` when the server refuses, `NBDClientError` when the connection is lost; so do the functions below.
    public func read(at offset: UInt64, count: Int, flags: CommandFlags = []) async throws -> [UInt8] {
        try await succeed(NBDRequest(.read, flags: flags, offset: offset, length: UInt64(clamping: count))).data
    }

    public func write(at offset: UInt64, _ bytes: [UInt8], flags: CommandFlags = []) async throws {
        let request = NBDRequest(.write, flags: flags, offset: offset, length: UInt64(bytes.count), payload: bytes)
        if let error = try await onLoop({ $0.submit(request, marksPayload: true) }).error { throw error }
    }

    public func flush(flags: CommandFlags = []) async throws { _ = try await succeed(NBDRequest(.flush, flags: flags)) }

    public func trim(at offset: UInt64, count: UInt64, flags: CommandFlags = []) async throws {
        _ = try await succeed(NBDRequest(.trim, flags: flags, offset: offset, length: count))
    }

    public func writeZeroes(at offset: UInt64, count: UInt64, flags: CommandFlags = []) async throws {
        _ = try await succeed(NBDRequest(.writeZeroes, flags: flags, offset: offset, length: count))
    }

    public func cache(at offset: UInt64, count: UInt64, flags: CommandFlags = []) async throws {
        _ = try await succeed(NBDRequest(.cache, flags: flags, offset: offset, length: count))
    }

    /// Extents by the name of their context. They begin at `offset`; they may cover less than `count`, and the last may end beyond it.
    public func blockStatus(at offset: UInt64, count: UInt64, flags: CommandFlags = []) async throws -> [String: [StatusExtent]] {
        try await named(succeed(NBDRequest(.blockStatus, flags: flags, offset: offset, length: count)))
    }

    /// The same for some of the selected contexts only: a BLOCK_STATUS with payload (P-EXT-14), which needs extended headers.
    public func blockStatus(at offset: UInt64, count: UInt64, contextIDs: [UInt32], flags: CommandFlags = []) async throws -> [String:
        [StatusExtent]]
    {
        var payload: [UInt8] = []
        payload.appendBigEndian(count)
        for id in contextIDs { payload.appendBigEndian(id) }
        var request = NBDRequest(
            .blockStatus, flags: flags.union(.payloadLength), offset: offset, length: UInt64(payload.count), payload: payload)
        request.effectByteCount = count
        request.contextIDs = contextIDs
        return try await named(succeed(request))
    }

    private func named(_ reply: NBDReply) async throws -> [String: [StatusExtent]] {
        var result: [String: [StatusExtent]] = [:]
        let extents = reply.extents
        for context in try await session?.contexts ?? [] { result[context.name] = extents[context.id] }
        return result
    }

    private func succeed(_ request: NBDRequest) async throws -> NBDReply {
        let reply = try await self.request(request)
        if let error = reply.error { throw error }
        return reply
    }
}
