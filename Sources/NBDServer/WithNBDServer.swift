import Block
public import Logging

/// Serves exports on a private Unix socket while `body` runs: for tests of anything that speaks NBD.
///
///     try await withNBDServer(exports: [Export(name: "", device: disk)]) { uri in
///         try await backUp(uri)
///     }
///
/// - Parameters:
///   - configuration: limits and the like; its listeners are replaced.
///   - body: gets the URI of the first export.
/// - Returns: what `body` returns. The server has drained and the socket is gone by then, also when `body` throws.
public func withNBDServer<Result: Sendable>(
    exports: [Export], configuration: NBDServer.Configuration = .init(listeners: []),
    logger: Logger = Logger(label: "nbd", factory: { _ in SwiftLogNoOpLogHandler() }),
    _ body: (String) async throws -> Result
) async throws -> Result {
    let path = "/tmp/nbd-\(UInt64.random(in: .min ... .max)).sock"
    var configuration = configuration
    configuration.listeners = [Listener(.unix(path: path))]
    let server = try NBDServer(exports: exports, configuration: configuration, logger: logger)
    defer { removeSocket(path) }
    return try await server.whileServing { try await body(server.uris.first ?? "") }
}

extension NBDServer {
    /// Starts, runs `body`, and drains, also when `body` throws.
    func whileServing<Result: Sendable>(_ body: () async throws -> Result) async throws -> Result {
        try await start()
        let serving = Task { try await run() }
        let result: Swift.Result<Result, any Error>
        do { result = .success(try await body()) } catch { result = .failure(error) }
        shutdown()
        try await serving.value
        return try result.get()
    }
}
