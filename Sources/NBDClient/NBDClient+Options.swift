public import NBDProtocol

/// What can be asked before an export is chosen. One at a time.
extension NBDClient {
    /// The exports the server is willing to list.
    ///
    /// - Throws: `RefusedOption`, `NBDClientError`; so do the functions below.
    public func listExports() async throws -> [ListedExport] {
        guard case .exports(let exports) = try await option(.list) else { throw NBDClientError.wrongPhase }
        return exports
    }

    /// The contexts of `export` that match the queries; without queries: all.
    public func listMetaContexts(_ export: String, queries: [String] = []) async throws -> [MetaContext] {
        guard case .contexts(let contexts) = try await option(.listMetaContexts(export: export, queries: queries)) else {
            throw NBDClientError.wrongPhase
        }
        return contexts
    }

    /// Selects contexts for BLOCK_STATUS on `export`; gives those that the server knows.
    @discardableResult
    public func setMetaContexts(_ export: String, queries: [String]) async throws -> [MetaContext] {
        guard case .contexts(let contexts) = try await option(.setMetaContexts(export: export, queries: queries)) else {
            throw NBDClientError.wrongPhase
        }
        return contexts
    }

    public func info(_ export: String) async throws -> ExportInfo {
        guard case .info(let info) = try await option(.info(export: export)) else { throw NBDClientError.wrongPhase }
        return info
    }

    /// Selects `options.contexts`, if any, then chooses the export: from now on requests may be sent.
    ///
    /// A server that knows no GO is asked by EXPORT_NAME; if that one closes, the error is `.handshake(.closed)`.
    @discardableResult
    public func go(_ export: String) async throws -> ClientSession {
        if !options.contexts.isEmpty, try await mode != .simple { try await setMetaContexts(export, queries: options.contexts) }
        return try await begin(.go(export: export))
    }

    /// Chooses the export the old way, without GO.
    @discardableResult
    public func exportName(_ export: String) async throws -> ClientSession { try await begin(.exportName(export)) }

    /// Sends any option with any data and gives all replies up to the final one. For tests of servers.
    public func rawOption(_ type: OptionType, data: [UInt8] = []) async throws -> [RawOptionReply] {
        guard case .raw(let replies) = try await option(.raw(type, data: data)) else { throw NBDClientError.wrongPhase }
        return replies
    }

    private func begin(_ request: ClientHandshake.Request) async throws -> ClientSession {
        switch try await onLoop({ $0.ask(request) }) {
        case .transmit(let session): return session
        case .completed(.refused(let refusal)): throw refusal
        default: throw NBDClientError.wrongPhase
        }
    }

    private func option(_ request: ClientHandshake.Request) async throws -> ClientHandshake.Outcome {
        guard case .completed(let outcome) = try await onLoop({ $0.ask(request) }) else { throw NBDClientError.wrongPhase }
        if case .refused(let refusal) = outcome { throw refusal }
        return outcome
    }
}
