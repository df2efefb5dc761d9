import NBDProtocol
import Synchronization

/// All exports of a server, by name, in the order of their creation.
final class ExportRegistry: Sendable {
    private struct State {
        var exports: [String: ServedExport] = [:]
        var names: [String] = []
        var nextID: UInt64 = 1
    }

    private let state = Mutex(State())
    /// The export that the empty name means, if no export is called "" (P-OPT-03).
    let defaultExport: String?
    private let allowsSeveralClients: Bool

    init(_ exports: [Export], defaultExport: String?, allowsSeveralClients: Bool) throws(ServerError) {
        self.defaultExport = defaultExport
        self.allowsSeveralClients = allowsSeveralClients
        for export in exports { try add(export) }
        if let defaultExport, find(defaultExport) == nil {
            throw ServerError(.invalidExport, "the default export '\(defaultExport.sanitized())' does not exist")
        }
    }

    func add(_ export: Export) throws(ServerError) {
        try state.withLock { state throws(ServerError) in
            guard state.exports[export.name] == nil else {
                throw ServerError(.invalidExport, "export name '\(export.name.sanitized())' is used twice")
            }
            state.exports[export.name] = try ServedExport(export, id: state.nextID, allowsSeveralClients: allowsSeveralClients)
            state.names.append(export.name)
            state.nextID += 1
        }
    }

    func find(_ name: String) -> ServedExport? {
        state.withLock { state in
            state.exports[name] ?? (name.isEmpty ? defaultExport.flatMap { state.exports[$0] } : nil)
        }
    }

    /// A snapshot: later changes do not show in it (S-LIST-07).
    var all: [ServedExport] {
        state.withLock { state in state.names.compactMap { state.exports[$0] } }
    }
}
