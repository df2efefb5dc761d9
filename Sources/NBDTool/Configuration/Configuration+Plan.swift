import BlockDrivers
import NBDProtocol
import NBDServer

extension Configuration {
    /// Makes the file the starting point of a plan; the command line changes it afterwards.
    ///
    /// - Throws: `.usage` naming the file and the key at fault.
    func apply(to plan: inout ServePlan) throws(ToolError) {
        do {
            plan.server.defaultExport = defaultExport
            plan.pidFile = pidFile
            if let poll { plan.server.pollLimit = try NBDTool.Limits.poll(poll, "poll") }
            if let fastPath { plan.server.usesFastPath = fastPath }
            if let tls { plan.tls = try self.plan(tls) }
            if let limits { try apply(limits, to: &plan) }
            try applyAccess(to: &plan.access)
            for (index, listener) in (listeners ?? []).enumerated() {
                plan.listeners.append(try self.plan(listener, "listeners[\(index)]"))
            }
            for (index, export) in (exports ?? []).enumerated() {
                plan.exports.append(try self.plan(export, "exports[\(index)]"))
            }
        } catch {
            throw .usage("\(path): \(error.message)")
        }
    }

    private func apply(_ limits: Limits, to plan: inout ServePlan) throws(ToolError) {
        typealias Bounds = NBDTool.Limits
        if let count = limits.connections {
            guard 0...Int(Int32.max) ~= count else { throw .usage("limits.connections \(count): expected 0 or more") }
            plan.server.connectionLimit = count
        }
        if let count = limits.connectionsPerPeer { plan.server.peerConnectionLimit = try Bounds.count(count, "limits.connections-per-peer") }
        if let count = limits.handshakes { plan.server.handshakeCountLimit = try Bounds.count(count, "limits.handshakes") }
        if let count = limits.handshakesPerPeer { plan.server.peerHandshakeCountLimit = try Bounds.count(count, "limits.handshakes-per-peer") }
        if let seconds = limits.stall { plan.server.stallLimit = try Bounds.seconds(String(seconds), "limits.stall") }
        if let seconds = limits.progress { plan.server.progressLimit = try Bounds.seconds(String(seconds), "limits.progress") }
        if let seconds = limits.peerSilence { plan.server.peerTimeLimit = try Bounds.seconds(String(seconds), "limits.peer-silence") }
        if let count = limits.requests {
            guard Bounds.requests ~= count else {
                throw .usage("limits.requests \(count): expected \(Bounds.requests.lowerBound) to \(Bounds.requests.upperBound)")
            }
            plan.server.requestLimit = count
        }
        if let seconds = limits.handshake { plan.server.handshakeLimit = try Bounds.seconds(String(seconds), "limits.handshake") }
        if let seconds = limits.drain { plan.server.drainLimit = try Bounds.seconds(String(seconds), "limits.drain") }
        if let size = limits.memory { plan.server.memoryLimit = try Bounds.memory(size.byteCount, "limits.memory") }
        if let size = limits.connectionMemory {
            plan.server.connectionMemoryLimit = try Bounds.connectionMemory(size.byteCount, "limits.connection-memory")
        }
    }

    private func plan(_ tls: TLS) throws(ToolError) -> ServePlan.TLSPlan {
        guard !tls.directory.isEmpty else { throw .usage("tls.directory is empty") }
        let kind: TLSCredentialsPlan.Kind
        switch tls.credentials ?? "x509" {
        case "x509": kind = .x509(verifiesPeer: tls.verifyPeer ?? true, checksOwn: true)
        case "psk":
            guard tls.verifyPeer != false else { throw .usage("tls.verify-peer cannot be off with keys that both sides know") }
            kind = .psk(username: nil)
        case let other: throw .usage("tls.credentials is x509 or psk, not '\(other.sanitized())'")
        }
        let credentials = TLSCredentialsPlan(kind: kind, directory: tls.directory, endpoint: .server)
        return ServePlan.TLSPlan(
            credentials: credentials, policy: try tls.mode.map { text throws(ToolError) in try ServePlan.policy(text, "tls.mode") } ?? .required)
    }

    private func plan(_ listener: Listener, _ place: String) throws(ToolError) -> ServePlan.ListenerPlan {
        var plan = ServePlan.ListenerPlan(place: .privateSocket, oldstyleExport: listener.oldstyle, isListable: listener.list ?? true)
        switch (listener.host, listener.unix, listener.activated) {
        case (let host?, nil, nil):
            guard !host.isEmpty else { throw .usage("\(place).host is empty") }
            plan.place = .tcp(host: host, port: try ServePlan.port(String(listener.port ?? ServePlan.defaultPort)))
        case (nil, let path?, nil):
            guard listener.port == nil else { throw .usage("\(place): a Unix socket has no port") }
            plan.place = .unix(path: try ServePlan.checked(path: path.hasPrefix("@") ? "\0" + path.dropFirst() : path))
        case (nil, nil, let name?):
            guard listener.port == nil else { throw .usage("\(place): an activated socket has its port already") }
            plan.place = .activated(name: name)
        default:
            throw .usage("\(place): exactly one of host, unix and activated must be given")
        }
        return plan
    }

    private func plan(_ export: Export, _ place: String) throws(ToolError) -> ExportPlan {
        let sources: [ExportPlan.Source?] = [
            export.file.map { .file($0) }, export.memory.map { .memory(byteCount: $0.byteCount) },
            export.null.map { .null(byteCount: $0.byteCount) }, export.pattern.map { .pattern(byteCount: $0.byteCount) },
        ]
        var plan = ExportPlan(name: export.name, source: try ExportPlan.only(of: sources, place))
        plan.description = export.description ?? ""
        plan.offset = export.offset?.byteCount ?? 0
        plan.byteCount = export.size?.byteCount
        plan.isReadOnly = export.readOnly ?? false
        if let text = export.tls { plan.requiresTLS = try ExportPlan.requiresTLS(text, place) }
        if let format = export.format { try plan.set(format: format) }
        try plan.storage.apply(
            cache: export.cache, discard: export.discard, detectZeroes: export.detectZeroes, aio: export.aio, spell: { "\(place).\($0)" })
        plan.storage.isLocked = export.locking ?? true
        plan.contexts = try ContextPlan(
            showsAllocationDepth: export.allocationDepth ?? false, bitmaps: export.bitmap ?? [], tracks: export.track ?? [])
        try plan.check()
        return plan
    }
}
