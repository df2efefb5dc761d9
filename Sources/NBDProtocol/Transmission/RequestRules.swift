/// What may be asked of one export in one session: run, refuse with an error, or close. Pure; every number it passes on was checked.
///
/// The order of checks is PROTOCOL 13's: payload read → command and flags known → read-only → range → device.
public struct RequestRules: Sendable {
    public let size: UInt64
    public let flags: TransmissionFlags
    public let mode: ReplyMode
    public let contexts: [MetaContext]
    let isZeroingForbidden: Bool
    /// Smallest block promised to the client; requests that break it are served all the same, and traced (S-REQ-14).
    public let minimumBlock: UInt32

    public init(_ session: Session) {
        size = session.export.byteCount
        flags = session.flags
        mode = session.mode
        contexts = session.contexts
        isZeroingForbidden = session.export.isZeroingForbidden
        minimumBlock = session.export.blockSizes.minimum
    }

    /// What to do with the bytes behind a header.
    public enum Intake: Equatable, Sendable {
        /// Nothing follows.
        case run(Request)
        /// Read this many bytes, then run.
        case collect(Request, byteCount: Int)
        /// Read this many bytes, then ask `filtered` what they mean.
        case collectFilter(RequestHeader, byteCount: Int)
        /// Read this many bytes and throw them away, then answer with the error: the stream stays in step (P-REQ-06).
        case refuse(Refusal, discarding: Int)
        /// Answer with the error, read nothing more, close (S-REQ-08).
        case refuseAndClose(Refusal, ProtocolViolation)
        case close(ProtocolViolation)
        /// DISC.
        case disconnect
    }

    /// A request whose flags, range and context were found in order.
    public struct Request: Equatable, Sendable {
        public var command: Command
        public var flags: CommandFlags
        public var cookie: UInt64
        public var offset: UInt64
        /// Bytes of the export concerned, inside the export; for FLUSH 0, at an offset that means nothing.
        public var count: UInt64
        /// BLOCK_STATUS only: what to report, in the order of replies.
        public var contexts: [MetaContext]

        @inlinable
        public init(
            command: Command, flags: CommandFlags, cookie: UInt64, offset: UInt64, count: UInt64, contexts: [MetaContext] = []
        ) {
            self.command = command
            self.flags = flags
            self.cookie = cookie
            self.offset = offset
            self.count = count
            self.contexts = contexts
        }
    }

    public struct Refusal: Error, Equatable, Sendable {
        public var error: NBDError
        /// At most some 200 bytes: QEMU's client closes on error payloads above 1000 (S-REQ-18).
        public var text: String

        @inline(never)
        public init(_ error: NBDError, _ text: String) {
            self.error = error
            self.text = text
        }
    }

    /// Decides on a header.
    @inlinable
    public func intake(_ header: RequestHeader) -> Intake {
        // The hot path: a plain READ that is in order.
        if header.command == .read, header.flags.isEmpty, header.length <= UInt64(payloadByteCountLimit), header.offset <= size,
            header.length <= size - header.offset
        {
            return .run(Request(command: .read, flags: [], cookie: header.cookie, offset: header.offset, count: header.length))
        }
        return generalIntake(header)
    }

    @usableFromInline
    func generalIntake(_ header: RequestHeader) -> Intake {
        if header.command == .disconnect { return .disconnect }  // whatever its other fields say (S-REQ-06)
        let hasPayload = header.command == .write || (mode == .extended && header.flags.contains(.payloadLength))
        guard hasPayload else {
            switch check(header, count: header.length) {
            case .success(let request): return .run(request)
            case .failure(let refusal): return .refuse(refusal, discarding: 0)
            }
        }
        guard header.length <= UInt64(payloadByteCountLimit) else {
            let violation = ProtocolViolation.payloadTooLong(byteCount: header.length)
            guard mode != .extended else { return .close(violation) }  // P-EXT-08
            return .refuseAndClose(
                Refusal(.invalid, "payload of \(header.length) bytes; at most \(payloadByteCountLimit) are accepted"), violation)
        }
        let byteCount = Int(header.length)
        if header.command == .blockStatus {
            guard flags.contains(.blockStatusPayload), byteCount >= 8, byteCount % 4 == 0, byteCount <= 8 + 4 * contexts.count else {
                return .refuse(Refusal(.invalid, "BLOCK_STATUS payload of \(byteCount) bytes"), discarding: byteCount)
            }
            return .collectFilter(header, byteCount: byteCount)
        }
        switch check(header, count: header.length) {
        case .success(let request): return .collect(request, byteCount: byteCount)
        case .failure(let refusal): return .refuse(refusal, discarding: byteCount)
        }
    }

    /// Decides on the payload of BLOCK_STATUS: 0 effect length(8)  8 context id(4) × n (P-EXT-14…17).
    public func filtered(_ header: RequestHeader, _ payload: RawSpan) -> Result<Request, Refusal> {
        var reader = WireReader(payload)
        var chosen = Set<UInt32>()
        var count: UInt64 = 0
        do {
            count = try reader.read()
            while reader.byteCount > 0 {
                let id: UInt32 = try reader.read()
                guard contexts.contains(where: { $0.id == id }), chosen.insert(id).inserted else {
                    return .failure(Refusal(.invalid, "metadata context \(id) is unknown or repeated"))
                }
            }
        } catch {
            return .failure(Refusal(.invalid, "malformed BLOCK_STATUS payload"))
        }
        return check(header, count: count).flatMap { request in
            var request = request
            request.contexts = contexts.filter { chosen.contains($0.id) }
            guard !request.contexts.isEmpty else { return .failure(Refusal(.invalid, "no metadata context in the payload")) }
            return .success(request)
        }
    }

    /// Whether this breaks the alignment that the client was told.
    @inlinable
    public func isMisaligned(_ request: Request) -> Bool {
        (request.offset | request.count) & UInt64(minimumBlock &- 1) != 0
    }

    /// - Parameter count: bytes of the export concerned, by the header or by a payload.
    private func check(_ header: RequestHeader, count: UInt64) -> Result<Request, Refusal> {
        let command = header.command
        guard let allowed = allowedFlags(command) else {
            return .failure(Refusal(.invalid, "unsupported command \(command.rawValue)"))
        }
        guard header.flags.isSubset(of: allowed) else {
            let extra = header.flags.subtracting(allowed).rawValue
            return .failure(Refusal(.invalid, "unsupported flags 0x\(String(extra, radix: 16)) for \(command)"))
        }
        if command.writes, flags.contains(.readOnly) {
            return .failure(Refusal(.notPermitted, "\(command) on a read-only export"))
        }
        var request = Request(command: command, flags: header.flags, cookie: header.cookie, offset: header.offset, count: count)
        // FLUSH concerns the whole export; wnbd puts junk here (P-CMD-FLUSH-2). Extended replies repeat the junk (P-EXT-10).
        if command == .flush {
            request.count = 0
            return .success(request)
        }
        guard header.offset <= size, count <= size - header.offset else {
            return .failure(
                Refusal(
                    command == .write || command == .writeZeroes ? .noSpace : .invalid,
                    "\(command) of \(count) bytes at \(header.offset) does not fit in an export of \(size)"))
        }
        switch command {
        case .read where count > UInt64(payloadByteCountLimit):
            return .failure(Refusal(.overflow, "READ of \(count) bytes; at most \(payloadByteCountLimit) are returned"))
        case .trim where !flags.contains(.trim), .writeZeroes where !flags.contains(.writeZeroes):
            guard !isZeroingForbidden else { return .failure(Refusal(.notPermitted, "\(command) is not for this client")) }
            return .failure(Refusal(.invalid, "\(command) is not offered by this export"))
        case .blockStatus where contexts.isEmpty:
            return .failure(Refusal(.invalid, "BLOCK_STATUS without a selected metadata context"))
        case .blockStatus where count == 0:
            return .failure(Refusal(.invalid, "BLOCK_STATUS of no bytes"))
        case .blockStatus:
            request.contexts = contexts
        default:
            break
        }
        return .success(request)
    }

    /// What may go with a command (S-REQ-15, S-REQ-16); nil: no such command.
    private func allowedFlags(_ command: Command) -> CommandFlags? {
        var allowed: CommandFlags = flags.contains(.fua) ? .fua : []
        switch command {
        case .read:
            if mode != .simple { allowed.insert(.df) }
        case .write:
            if mode == .extended { allowed.insert(.payloadLength) }
        case .writeZeroes:
            allowed.insert(.noHole)
            if flags.contains(.fastZero) { allowed.insert(.fastZero) }
        case .blockStatus:
            allowed.insert(.reqOne)
            if flags.contains(.blockStatusPayload) { allowed.insert(.payloadLength) }
        case .flush, .trim, .cache:
            break
        default:
            return nil
        }
        return allowed
    }
}
