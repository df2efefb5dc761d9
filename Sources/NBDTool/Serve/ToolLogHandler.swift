import Logging
import NBDProtocol

/// Log lines for people and journals: one line each, on standard error.
///
///     nbd: warning: closed: bad magic peer=192.0.2.7:40123
struct ToolLogHandler: LogHandler {
    /// Longest text of a message or a value, in characters.
    private static let textLimit = 1000

    /// Begins every line.
    let program: String
    var metadata: Logger.Metadata = [:]
    var metadataProvider: Logger.MetadataProvider?
    var logLevel: Logger.Level

    init(program: String, isVerbose: Bool) {
        self.program = program
        logLevel = isVerbose ? .debug : .notice
    }

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        // In one call, so that lines of several threads do not mix.
        HostProcess.write(Array((line(event) + "\n").utf8), to: 2)
    }

    /// The line of an event, without its break. Control characters of strangers do not get through.
    func line(_ event: LogEvent) -> String {
        var line = "\(program): \(event.level): \(event.message.description.sanitized(limit: Self.textLimit))"
        var values = metadata
        if let provided = metadataProvider?.get() { values.merge(provided) { _, new in new } }
        if let own = event.metadata { values.merge(own) { _, new in new } }
        for (key, value) in values.sorted(by: { $0.key < $1.key }) {
            line += " \(key.sanitized())=\(value.description.sanitized(limit: Self.textLimit))"
        }
        if let error = event.error { line += " error=\("\(error)".sanitized(limit: Self.textLimit))" }
        return line
    }
}
