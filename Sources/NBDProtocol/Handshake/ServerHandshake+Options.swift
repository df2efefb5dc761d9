extension ServerHandshake {
    /// Why one option was refused; negotiation goes on.
    struct Refusal: Error {
        var type: OptionReplyType
        /// For people; names from the client are cut and cleaned before they come here (S-OPT-07).
        var text: String

        init(_ type: OptionReplyType, _ text: String) {
            self.type = type
            self.text = text
        }

        static func malformed(_ option: OptionType) -> Refusal {
            Refusal(.invalid, "malformed data of option \(option)")
        }
    }
}

// Carrying out options, and their replies: 0 magic(8)  8 option(4)  12 type(4)  16 length(4)  20 data.
extension ServerHandshake {
    mutating func perform(_ option: OptionType, _ payload: inout WireReader, output: inout [UInt8]) -> Action {
        if option == .setMetaContext { selection = nil }  // first act, so that any failure leaves nothing selected (S-META-04)
        do throws(Refusal) {
            switch option {
            case .exportName: return exportName(payload.remainder())
            case .list: return try list()
            case .startTLS: return try startTLS(output: &output)
            case .info, .go: return try info(option, &payload)
            case .structuredReply: try agree(on: .structured)
            case .extendedHeaders: try agree(on: .extended)
            default: return try metaContexts(option, &payload)
            }
            reply(.ack, to: option, output: &output)
            return .read
        } catch {
            return refuse(option, error, output: &output)
        }
    }

    private mutating func startTLS(output: inout [UInt8]) throws(Refusal) -> Action {
        trace?(.negotiateStartTLS)
        guard tls != .off else { throw Refusal(.policy, "TLS is not configured on this server") }
        guard !isEncrypted else { throw Refusal(.invalid, "TLS is already in use") }
        reply(.ack, to: .startTLS, output: &output)
        trace?(.negotiateStartTLSHandshake)
        state = .startingTLS
        return .startTLS
    }

    private mutating func exportName(_ bytes: [UInt8]) -> Action {
        // An embedded NUL or invalid UTF-8 cannot be the name of an export (S-EXPN-03); after extended headers the answer has no form (P-EXT-02).
        guard let name = String(protocolBytes: bytes), mode != .extended else {
            return close(.exportNameRefused(String(decoding: bytes, as: UTF8.self)))
        }
        trace?(.negotiateHandleExportName(name))
        state = .lookingUp(.exportName, .exportName(name))
        return .lookUp(name)
    }

    private mutating func list() throws(Refusal) -> Action {
        guard isListable else { throw Refusal(.policy, "this server does not list its exports") }
        state = .listing
        return .list
    }

    /// INFO and GO: 0 name length L(4)  4 name(L)  4+L count N(2)  6+L info type(2)*N.
    private mutating func info(_ option: OptionType, _ payload: inout WireReader) throws(Refusal) -> Action {
        let name = try exportName(option, &payload)
        var types: [InfoType] = []
        do {
            let count: UInt16 = try payload.read()
            guard payload.byteCount == Int(count) * 2 else { throw WireError.truncated }
            for _ in 0..<count { types.append(InfoType(rawValue: try payload.read())) }
        } catch {
            throw Refusal(.invalid, "the count of info requests of option \(option) does not match its length")
        }
        if let trace { trace(.negotiateHandleInfoRequests(types, export: name)) }
        state = .lookingUp(option, .info(name: name, types: types))
        return .lookUp(name)
    }

    /// A counted export name in front of other data.
    func exportName(_ option: OptionType, _ payload: inout WireReader) throws(Refusal) -> String {
        do {
            let count: UInt32 = try payload.read()
            guard count <= stringByteCountLimit else {
                throw Refusal(.invalid, "export name of \(count) bytes; at most \(stringByteCountLimit) are allowed")
            }
            return try payload.string(Int(count))
        } catch let refusal as Refusal {
            throw refusal
        } catch WireError.badString {
            throw Refusal(.invalid, "the export name is not UTF-8 without NUL")
        } catch {
            throw .malformed(option)
        }
    }

    private mutating func agree(on wanted: ReplyMode) throws(Refusal) {
        switch (mode, wanted) {
        case (.extended, .structured):
            throw Refusal(.extendedHeadersRequired, "extended headers are already agreed on")
        case (.structured, .structured):
            throw Refusal(.invalid, "structured replies are already agreed on")
        case (.extended, .extended):
            throw Refusal(.invalid, "extended headers are already agreed on")
        default:
            mode = wanted
        }
    }

    /// Continues after `.lookUp`: `export` is what the name means, nil when there is no such export for this client.
    public mutating func answer(_ export: ExportDescription?, output: inout [UInt8]) -> Action {
        guard case .lookingUp(let option, let inquiry) = state else { return close(nil) }
        state = .option
        // In clear, an export that requires TLS does not exist.
        let export = export?.requiresTLS == true && !isEncrypted ? nil : export
        switch inquiry {
        case .exportName(let name):
            guard let export else { return close(.exportNameRefused(name)) }
            let flags = flags(for: export, contexts: contexts(for: export))
            trace?(.negotiateNewStyleSizeFlags(size: export.byteCount, flags: flags))
            output.appendBigEndian(export.byteCount)
            output.appendBigEndian(flags.rawValue)
            if !clientFlags.contains(.noZeroes) { output.append(contentsOf: repeatElement(0, count: 124)) }
            return transmit(export)
        case .info(let name, let types):
            guard let export else {
                // The same answer for what is not there and for what is not shown in clear (P-TLS-08): names must not be guessed.
                let mayAppear = tls == .optional && !isEncrypted
                return refuse(option, mayAppear ? .hiddenExport(name) : .unknownExport(name), output: &output)
            }
            return answerInfo(option, export, types, output: &output)
        case .metaContexts(let name, let queries):
            guard let export else { return refuse(option, .unknownExport(name), output: &output) }
            answerMetaContexts(option, export, queries, output: &output)
            return .read
        }
    }

    /// Continues after `.lookUp` when there is such an export, but not for this client to open.
    public mutating func answerForbidden(output: inout [UInt8]) -> Action {
        guard case .lookingUp(let option, let inquiry) = state else { return close(nil) }
        if case .exportName(let name) = inquiry { return close(.exportNameRefused(name)) }
        return refuse(option, Refusal(.policy, "this export is not for this client"), output: &output)
    }

    /// NAME, DESCRIPTION, BLOCK_SIZE, EXPORT, then the final reply: QEMU's client wants BLOCK_SIZE before EXPORT (S-INFO-15).
    private mutating func answerInfo(
        _ option: OptionType, _ export: ExportDescription, _ types: [InfoType], output: inout [UInt8]
    ) -> Action {
        let asksForBlockSize = types.contains(.blockSize)
        if types.contains(.name) { send(.name, Array(export.name.utf8), option, &output) }
        if !export.text.isEmpty { send(.description, Array(export.text.utf8), option, &output) }

        var sizes = export.blockSizes
        // A client that does not ask is not bound to any alignment when it goes on (S-INFO-11, S-INFO-17).
        if option == .go, !asksForBlockSize { sizes.minimum = 1 }
        trace?(.negotiateHandleInfoBlockSize(sizes))
        var data: [UInt8] = []
        data.appendBigEndian(sizes.minimum)
        data.appendBigEndian(sizes.preferred)
        data.appendBigEndian(sizes.maximumPayload)
        send(.blockSize, data, option, &output)

        let flags = flags(for: export, contexts: option == .go ? contexts(for: export) : nil)
        trace?(.negotiateNewStyleSizeFlags(size: export.byteCount, flags: flags))
        data.removeAll()
        data.appendBigEndian(export.byteCount)
        data.appendBigEndian(flags.rawValue)
        send(.export, data, option, &output)

        if option == .info, !asksForBlockSize, export.blockSizes.minimum > 1 {
            return refuse(
                option, Refusal(.blockSizeRequired, "requests must be multiples of \(export.blockSizes.minimum) bytes"), output: &output)
        }
        reply(.ack, to: option, output: &output)
        return option == .go ? transmit(export) : .read
    }

    private func send(_ type: InfoType, _ data: [UInt8], _ option: OptionType, _ output: inout [UInt8]) {
        trace?(.negotiateSendInfo(type, byteCount: data.count))
        var payload: [UInt8] = []
        payload.appendBigEndian(type.rawValue)
        payload.append(contentsOf: data)
        reply(.info, to: option, payload, output: &output)
    }

    /// Continues after `.list` with a snapshot of the exports (S-LIST-02…07).
    public mutating func answer(list exports: [ExportDescription], output: inout [UInt8]) -> Action {
        guard case .listing = state else { return close(nil) }
        state = .option
        let showsAll = isEncrypted
        let exports = exports.filter { showsAll || !$0.requiresTLS }
        if !hasListed { optionsLeft += 8 * exports.count }
        hasListed = true
        for export in exports {
            trace?(.negotiateSendReplyList(export: export.name, description: export.text))
            var data: [UInt8] = []
            data.appendCounted(export.name)
            data.append(contentsOf: export.text.utf8)
            reply(.server, to: .list, data, output: &output)
        }
        reply(.ack, to: .list, output: &output)
        return .read
    }

    func reply(_ type: OptionReplyType, to option: OptionType, _ data: [UInt8] = [], output: inout [UInt8]) {
        trace?(.negotiateSendReply(type, to: option, byteCount: data.count))
        output.appendBigEndian(Magic.optionReply)
        output.appendBigEndian(option.rawValue)
        output.appendBigEndian(type.rawValue)
        output.appendBigEndian(UInt32(data.count))
        output.append(contentsOf: data)
    }

    mutating func refuse(_ option: OptionType, _ refusal: Refusal, output: inout [UInt8]) -> Action {
        state = .option
        trace?(.negotiateSendReplyError(refusal.text))
        reply(refusal.type, to: option, Array(refusal.text.utf8), output: &output)
        return .read
    }
}

extension ServerHandshake.Refusal {
    static func unknownExport(_ name: String) -> Self {
        Self(.unknown, "export '\(name.sanitized())' is not here")
    }

    static func hiddenExport(_ name: String) -> Self {
        Self(.tlsRequired, "export '\(name.sanitized())' is not here without TLS: send STARTTLS first")
    }
}
