import NBDClient
import NBDProtocol

/// A sentence for the person who typed the command.
struct InfoFailure: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

/// How `nbd info` and `nbd list` ask a server.
extension InfoReport {
    /// About the one export that `uri` names.
    static func one(_ uri: NBDURI, _ options: NBDClient.Options) async throws -> InfoReport {
        let client = try await NBDClient.open(uri, options: options)
        var report = try await InfoReport(style: client.style, mode: client.mode, exports: [], isEncrypted: options.tls != nil)
        report.exports = [try await describe(uri, client, report)]
        try? await client.disconnect()
        return report
    }

    /// About all exports the server lists. The export that `uri` names, if any, does not matter.
    static func all(_ uri: NBDURI, _ options: NBDClient.Options) async throws -> InfoReport {
        let client = try await NBDClient.open(uri, options: options)
        var report = try await InfoReport(style: client.style, mode: client.mode, exports: [], isEncrypted: options.tls != nil)
        guard report.style == .fixedNewstyle else {
            throw InfoFailure("the server is too old to list its exports (\(report.style.rawValue))")
        }
        // One that is listed may be gone already, or not for us: it is left out, the others are shown.
        for listed in try await client.listExports() {
            var uri = uri
            uri.exportName = listed.name
            do {
                var export = try await describe(uri, client, report)
                if export.info.text == nil, !listed.text.isEmpty { export.info.text = listed.text }
                report.exports.append(export)
            } catch is RefusedOption {}
        }
        try? await client.disconnect()
        return report
    }

    private static func describe(_ uri: NBDURI, _ client: NBDClient, _ report: InfoReport) async throws -> Export {
        var uri = uri
        if report.isEncrypted { uri.requiresTLS = true }
        let name = uri.exportName
        if let session = try await client.session { return Export(info: session.info, uri: "\(uri)", contexts: nil) }
        guard report.style == .fixedNewstyle else { return Export(info: try await client.go(name).info, uri: "\(uri)", contexts: nil) }
        let contexts = report.mode == .simple ? nil : try? await client.listMetaContexts(name).map(\.name)
        do {
            return Export(info: try await client.info(name), uri: "\(uri)", contexts: contexts)
        } catch let refusal as RefusedOption where refusal.reply == .unsupported {
            // It knows no INFO: then the export has to be opened.
            return Export(info: try await client.go(name).info, uri: "\(uri)", contexts: contexts)
        }
    }
}
