/// An option that was sent and is not answered to the end.
struct PendingOption {
    enum Purpose {
        case startTLS
        case negotiate(ReplyMode)
        case request(ClientHandshake.Request)
    }
    var option: OptionType
    var purpose: Purpose
    var replyCount = 0
    var exports: [ListedExport] = []
    var contexts: [MetaContext] = []
    var raw: [RawOptionReply] = []
    var info = PartialInfo()

    init(_ option: OptionType, _ purpose: Purpose) {
        self.option = option
        self.purpose = purpose
    }
}

/// The infos of INFO and GO, which come in any order (P-INFO-04).
struct PartialInfo {
    var export: (byteCount: UInt64, flags: TransmissionFlags)?
    var name: String?
    var text: String?
    var blockSizes: BlockSizes?
}

extension ClientHandshake {
    /// Sends an option.
    ///
    /// - Throws: `.notReady`, `.needsFixedNewstyle`, `.badName`; the handshake may go on after each.
    public mutating func begin(_ request: Request, output: inout [UInt8]) throws(HandshakeError) {
        guard case .ready = state else { throw .notReady }
        let (option, data) = try encode(request)
        if option == .exportName, case .raw = request {
            // Its answer is no option reply: it has to be asked for as what it is.
            throw .badReply("EXPORT_NAME cannot be sent raw")
        }
        guard style == .fixedNewstyle || option == .exportName else {
            if case .go(let name) = request { return try begin(.exportName(name), output: &output) }
            throw .needsFixedNewstyle(option)
        }
        // P-META-11: also a failing SET voids the earlier selection.
        if option == .setMetaContext { selection = nil }
        send(PendingOption(option, .request(request)), data, output: &output)
        if case .exportName(let name) = request { state = .exportName(name) }
    }

    private func encode(_ request: Request) throws(HandshakeError) -> (OptionType, [UInt8]) {
        var data: [UInt8] = []
        switch request {
        case .list: return (.list, [])
        case .abort: return (.abort, [])
        case .raw(let option, let bytes): return (option, bytes)
        case .exportName(let name):
            return (.exportName, Array(try checked(name).utf8))
        case .listMetaContexts(let export, let queries), .setMetaContexts(let export, let queries):
            data.appendCounted(try checked(export))
            data.appendBigEndian(UInt32(truncatingIfNeeded: queries.count))
            for query in queries { data.appendCounted(try checked(query)) }
            if case .listMetaContexts = request { return (.listMetaContext, data) }
            return (.setMetaContext, data)
        case .info(let export), .go(let export):
            data.appendCounted(try checked(export))
            data.appendBigEndian(UInt16(truncatingIfNeeded: configuration.infoRequests.count))
            for type in configuration.infoRequests { data.appendBigEndian(type.rawValue) }
            if case .info = request { return (.info, data) }
            return (.go, data)
        }
    }

    private func checked(_ name: String) throws(HandshakeError) -> String {
        guard name.utf8.count <= stringByteCountLimit, !name.utf8.contains(0) else { throw .badName }
        return name
    }

    mutating func receiveOptionReply(_ input: inout WireReader, output: inout [UInt8]) throws -> Action? {
        let magic: UInt64 = try input.read()
        guard magic == Magic.optionReply else { throw HandshakeError.badReplyMagic(magic) }
        let option = OptionType(rawValue: try input.read())
        guard option == pending.option else { throw HandshakeError.wrongOption(asked: pending.option, answered: option) }
        let type = OptionReplyType(rawValue: try input.read())
        let byteCount: UInt32 = try input.read()
        guard byteCount <= configuration.limits.replyByteCountLimit else { throw HandshakeError.replyTooLong(option, byteCount: byteCount) }
        var data = try input.part(Int(byteCount))
        pending.replyCount += 1
        guard pending.replyCount <= configuration.limits.replyCountLimit else { throw HandshakeError.tooManyReplies(option) }

        if case .request(.raw) = pending.purpose {
            pending.raw.append(RawOptionReply(type: type, data: data.remainder()))
            guard type == .ack || type.isError else { return nil }
            if type == .ack, option == .structuredReply { mode = .structured }
            if type == .ack, option == .extendedHeaders { mode = .extended }
            return complete(.raw(pending.raw))
        }
        if type == .ack {
            guard data.byteCount == 0 else { throw HandshakeError.badReply("ACK of \(option) with data") }
            return try acknowledged(output: &output)
        }
        if type.isError {
            let text = String(decoding: data.remainder().prefix(stringByteCountLimit), as: UTF8.self).sanitized(limit: 400)
            return try refused(RefusedOption(option: option, reply: type, text: text), output: &output)
        }
        try pending.take(type, &data)
        return nil
    }

    private mutating func complete(_ outcome: Outcome) -> Action {
        state = .ready
        pending = PendingOption(.abort, .request(.abort))
        return .completed(outcome)
    }

    private mutating func acknowledged(output: inout [UInt8]) throws(HandshakeError) -> Action? {
        switch pending.purpose {
        case .startTLS:
            state = .startingTLS
            return .startTLS
        case .negotiate(let agreed):
            mode = agreed
            return negotiate(.simple, output: &output)
        case .request(.list): return complete(.exports(pending.exports))
        case .request(.listMetaContexts): return complete(.contexts(pending.contexts))
        case .request(.setMetaContexts(let export, _)):
            selection = (export, pending.contexts)
            return complete(.contexts(pending.contexts))
        case .request(.info(let name)): return complete(.info(try pending.info.finished(asked: name)))
        case .request(.go(let name)): return transmit(try pending.info.finished(asked: name), asked: name)
        case .request(.abort):
            state = .over
            return .close
        case .request(.exportName), .request(.raw):
            throw .unexpectedReply(pending.option, .ack)
        }
    }

    private mutating func refused(_ refusal: RefusedOption, output: inout [UInt8]) throws(HandshakeError) -> Action? {
        switch pending.purpose {
        case .startTLS: throw .tlsRefused(refusal)
        case .negotiate(.extended): return negotiate(.structured, output: &output)
        case .negotiate: return negotiate(.simple, output: &output)
        case .request(.go(let name)) where refusal.reply == .unsupported:
            // P-EXT-02: who knows extended headers knows GO.
            guard mode != .extended else { throw .unexpectedReply(.go, .unsupported) }
            state = .ready
            try begin(.exportName(name), output: &output)
            return nil
        default: return complete(.refused(refusal))
        }
    }
}

extension PendingOption {
    /// Takes a reply that is neither an ACK nor an error.
    fileprivate mutating func take(_ type: OptionReplyType, _ reply: inout WireReader) throws {
        do {
            switch (type, option) {
            case (.server, .list):
                let count: UInt32 = try reply.read()
                let name = try reply.string(Int(count))
                exports.append(ListedExport(name: name, text: try reply.string(reply.byteCount)))
            case (.metaContext, .listMetaContext), (.metaContext, .setMetaContext):
                let id: UInt32 = try reply.read()
                let context = MetaContext(id: id, name: try reply.string(reply.byteCount))
                // P-META-10: the ids of a selection tell its chunks apart.
                if option == .setMetaContext, contexts.contains(where: { $0.id == id || $0.name == context.name }) {
                    throw HandshakeError.badReply("context '\(context.name.sanitized())' with id \(id) twice")
                }
                contexts.append(context)
            case (.info, .info), (.info, .go):
                try info.take(InfoType(rawValue: try reply.read()), &reply)
            default:
                throw HandshakeError.unexpectedReply(option, type)
            }
        } catch let error as WireError {
            throw HandshakeError.badReply(error == .badString ? "\(type) with text that is not UTF-8 or too long" : "\(type) cut short")
        }
    }
}

extension PartialInfo {
    fileprivate mutating func take(_ type: InfoType, _ data: inout WireReader) throws {
        let isRepeated =
            switch type {
            case .export: export != nil
            case .name: name != nil
            case .description: text != nil
            case .blockSize: blockSizes != nil
            default: false
            }
        guard !isRepeated else { throw HandshakeError.badReply("INFO \(type) twice") }
        switch type {
        case .export:
            let byteCount: UInt64 = try data.read()
            let flags = TransmissionFlags(rawValue: try data.read())
            guard flags.contains(.hasFlags) else { throw HandshakeError.badTransmissionFlags(flags.rawValue) }
            export = (byteCount, flags)
        case .name: name = try data.string(data.byteCount)
        case .description: text = try data.string(data.byteCount)
        case .blockSize:
            let sizes = BlockSizes(minimum: try data.read(), preferred: try data.read(), maximumPayload: try data.read())
            // P-SIZE-01…03, the MUSTs.
            guard sizes.minimum.nonzeroBitCount == 1, sizes.minimum <= 65536, sizes.preferred.nonzeroBitCount == 1,
                sizes.preferred >= max(512, sizes.minimum), sizes.maximumPayload >= sizes.preferred
            else { throw HandshakeError.badReply("block sizes \(sizes.minimum), \(sizes.preferred), \(sizes.maximumPayload)") }
            blockSizes = sizes
        default: return  // of a later time, or nothing we asked for
        }
        guard data.byteCount == 0 else { throw HandshakeError.badReply("INFO \(type) too long") }
    }

    fileprivate func finished(asked: String) throws(HandshakeError) -> ExportInfo {
        guard let export else { throw .badReply("ACK without INFO EXPORT") }  // P-INFO-03
        return ExportInfo(name: name ?? asked, text: text, byteCount: export.byteCount, flags: export.flags, blockSizes: blockSizes)
    }
}
