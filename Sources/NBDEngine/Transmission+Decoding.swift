import Block
import NBDProtocol
import NIOCore

// The machine: bytes become requests, and those are started until bytes, slots or memory run out.
extension Transmission {
    /// Decodes and starts requests until bytes, slots or memory run out.
    mutating func advance() {
        while step() {}
        guard inputHasEnded else { return }
        switch stage {
        case .header where mayDecode && !shouldSend: end(inbox.readableBytes == 0 ? nil : .truncated)
        case .collecting(_, _, _, let missing) where missing > 0: end(.truncated)
        case .discarding: end(.truncated)
        case .header, .admission, .collecting, .ended: break
        }
    }

    /// One step; false when nothing more can be done now.
    private mutating func step() -> Bool {
        switch stage {
        case .header:
            return decodeHeader()
        case .admission(let intake, let header):
            guard !isPaused else { return false }
            stage = .header
            return admit(intake, header)
        case .collecting(let intake, let header, var payload, let missing):
            guard missing == 0 else {
                stage = .ended  // so that the buffer has one owner while it grows
                let taken = min(missing, inbox.readableBytes)
                if var part = inbox.readSlice(length: taken) { payload.writeBuffer(&part) }
                stage = .collecting(intake, header, payload, missing: missing - taken)
                return taken == missing
            }
            guard !isPaused, !mustWait(intake) else { return false }
            stage = .header
            let before = work.count
            start(intake, header, payload)
            // A task may give it back when it has ended (`complete`).
            if work.count == before { pool.give(payload) }
            return true
        case .discarding(let refusal, let header, let remaining):
            let taken = min(remaining, inbox.readableBytes)
            inbox.moveReaderIndex(forwardBy: taken)
            guard taken == remaining else {
                stage = .discarding(refusal, header, remaining: remaining - taken)
                return false
            }
            stage = .header
            refuse(refusal, header)
            return true
        case .ended:
            return false
        }
    }

    private mutating func decodeHeader() -> Bool {
        let byteCount = RequestHeader.byteCount(rules.mode)
        guard mayDecode, !isTurnFull, inbox.readableBytes >= 4 else { return false }
        let header: RequestHeader
        do throws(WireError) {
            var reader = WireReader(inbox.readableBytesSpan)
            header = try RequestHeader(from: &reader, mode: rules.mode)
        } catch {
            if case .badMagic(let magic) = error { end(.badRequestMagic(magic)) }
            return false
        }
        inbox.moveReaderIndex(forwardBy: byteCount)
        requestCount &+= 1
        trace?(.receiveRequest(header))
        var intake = rules.intake(header)
        if isShuttingDown { intake = intake.shuttingDown }
        switch intake {
        case .run, .collect, .collectFilter:
            return admit(intake, header)
        case .refuse(let refusal, let discarding):
            stage = .discarding(refusal, header, remaining: discarding)
            return true
        case .refuseAndClose(let refusal, let violation):
            refuse(refusal, header)
            end(violation)
            return false
        case .close(let violation):
            end(violation)
            return false
        case .disconnect:
            end(nil)
            return false
        }
    }

    /// Takes memory for a request; without it the request waits, and nothing is read behind it.
    private mutating func admit(_ intake: RequestRules.Intake, _ header: RequestHeader) -> Bool {
        let answer =
            switch intake {
            case .run(let request): lease.take(Self.cost(request))
            case .collect(_, let byteCount), .collectFilter(_, let byteCount): lease.take(byteCount)
            default: MemoryLease.Answer.granted
            }
        guard answer == .granted else {
            stage = .admission(intake, header)
            return false
        }
        expectsLongPayload = false
        switch intake {
        case .collect(_, let byteCount), .collectFilter(_, let byteCount):
            expectsLongPayload = hasMore && byteCount >= Self.longPayloadByteCount
            if inbox.readableBytes >= byteCount, !mustWait(intake), let whole = inbox.readSlice(length: byteCount) {
                start(intake, header, whole)
            } else {
                stage = .collecting(intake, header, pool.takeAligned(byteCount + byteCountBehind(byteCount)), missing: byteCount)
            }
        default:
            start(intake, header, nil)
        }
        return true
    }

    /// A long write that another loop would keep waiting now, or for which too many others are handed over.
    private mutating func mustWait(_ intake: RequestRules.Intake) -> Bool {
        let count = waitCount
        waitCount = 0
        guard case .collect(let request, let byteCount) = intake else { return false }
        if shouldHandOver(request) { return handedOverCount >= writePolicy.handOverLimit }
        guard byteCount >= writePolicy.exclusiveFloor, writeTurns.isTaken, count < Self.waitLimit else { return false }
        waitCount = count + 1
        return true
    }

    /// Bytes that carrying out a request without payload may take.
    static func cost(_ request: RequestRules.Request) -> Int {
        switch request.command {
        case .read: Int(request.count)
        // 16 bytes for each extent; few files have more than one in 4 KiB.
        case .blockStatus: Int(min(request.count / 256, 4 << 20)) * min(max(request.contexts.count, 1), 8)
        default: 0
        }
    }

    /// All bytes of the request are here and its memory is taken.
    private mutating func start(_ intake: RequestRules.Intake, _ header: RequestHeader, _ payload: ByteBuffer?) {
        switch intake {
        case .run(let request):
            run(request, payload, cost: Self.cost(request))
        case .collect(let request, let byteCount):
            trace?(.receivePayload(cookie: header.cookie, byteCount: byteCount))
            if rules.mode == .extended, !header.flags.contains(.payloadLength) {
                trace?(.extendedPayloadCompliance(offset: header.offset, length: header.length))
            }
            run(request, payload, cost: byteCount)
        case .collectFilter(_, let byteCount):
            guard let payload else { break }  // never: it was collected
            lease.release(byteCount)
            switch rules.filtered(header, payload.readableBytesSpan) {
            case .success(let request):
                trace?(.blockStatusPayloadCompliance(offset: request.offset, length: request.count))
                let cost = Self.cost(request)
                lease.charge(cost)
                run(request, payload, cost: cost)
            case .failure(let refusal):
                refuse(refusal, header)
            }
        default:
            break
        }
    }

    private mutating func run(_ request: RequestRules.Request, _ payload: ByteBuffer?, cost: Int) {
        if trace != nil, rules.isMisaligned(request) {
            trace?(.alignCompliance(request.command, offset: request.offset, length: request.count, alignment: rules.minimumBlock))
        }
        if runNow(request, payload, cost: cost) { return }
        requestsInFlight += 1
        var awaited = AwaitedRequest(
            request: request, payload: payload?.withoutMuchAround ?? ByteBuffer(), cost: cost, device: device,
            sources: request.command == .blockStatus ? sources : [:], mode: rules.mode,
            chunkByteCountLimit: UInt64(session.export.blockSizes.maximumPayload), trace: trace)
        // Where `runNow` found it: a place that stays, without asking the mapper again.
        if let place = segments.only {
            if placesAreFixed, awaited.isPlainRead {
                awaited.shortcut = .read(from: place)
            } else if shouldHandOver(request) {
                awaited.shortcut = .write(to: place)
                handedOverCount += 1
            }
        }
        work.append(awaited)
    }

    private mutating func refuse(_ refusal: RequestRules.Refusal, _ header: RequestHeader) {
        let encoder = ReplyEncoder(mode: rules.mode, cookie: header.cookie, offset: header.offset, trace: trace)
        enqueue(encoder.reply { encoder.failure(refusal.error, refusal.text, into: &$0) })
    }

    /// Accounts for the memory of replies that were added, or taken back, since it was `before`.
    mutating func account(since before: Int) {
        lease.charge(replies.memoryByteCount - before)
    }

    mutating func enqueue(_ reply: ByteBuffer) {
        let before = replies.memoryByteCount
        replies.append(reply)
        account(since: before)
    }
}

extension ByteBuffer {
    /// A part of a buffer keeps all of it: rather a copy than that for long.
    fileprivate var withoutMuchAround: ByteBuffer {
        guard storageCapacity > 2 * max(readableBytes, 2048) else { return self }
        var copy = ByteBuffer()
        copy.writeImmutableBuffer(self)
        return copy
    }
}

extension RequestRules.Intake {
    /// The same bytes, but the answer is ESHUTDOWN.
    fileprivate var shuttingDown: RequestRules.Intake {
        let refusal = RequestRules.Refusal(.shutdown, "the server is shutting down")
        return switch self {
        case .run: .refuse(refusal, discarding: 0)
        case .collect(_, let byteCount), .collectFilter(_, let byteCount): .refuse(refusal, discarding: byteCount)
        case .refuse(_, let discarding): .refuse(refusal, discarding: discarding)
        case .refuseAndClose, .close, .disconnect: self
        }
    }
}
