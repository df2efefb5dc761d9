import NBDProtocol
import NBDServer

/// Which trace points are wanted and where their lines go: every `-T`/`--trace` together.
struct TracePlan: Equatable, Sendable {
    /// Turns the trace points on, or off, whose names match. Of several that match, the last counts.
    struct Rule: Equatable, Sendable {
        let pattern: Glob
        let isOn: Bool
        /// Where it was given, for messages: `--trace`, or a file and line.
        let source: String

        /// - Parameter text: A pattern, which turns on, or `-` and a pattern.
        init(_ text: String, source: String) {
            isOn = !text.hasPrefix("-")
            pattern = Glob(isOn ? text : String(text.dropFirst()))
            self.source = source
        }

        func matches(_ point: TraceEvent.Point) -> Bool { pattern.matches(point.rawValue) }
    }

    private enum Part: Equatable, Sendable {
        case rule(Rule)
        /// `events=PATH`, not read yet.
        case file(String)
    }

    /// A file of patterns longer than this is a mistake.
    static let byteLimit = 1 << 16

    private var parts: [Part] = []
    /// nil: standard error.
    private(set) var file: String?

    var isOn: Bool { !parts.isEmpty }

    /// Reads `[enable=]GLOB[,events=FILE][,file=PATH]`. Several options add up; the last `file` counts.
    ///
    /// - Throws: `.usage` for an unknown key and an empty pattern or file name.
    mutating func add(_ text: String) throws(ToolError) {
        // The first field may come without its key, and only the first.
        let isBare = text.prefix { $0 != "," }.contains("=") == false
        var list = try KeyValueList(isBare ? "enable=" + text : text, context: "--trace")
        if let pattern = list.take("enable") {
            guard !pattern.isEmpty, pattern != "-" else { throw .usage("--trace: the pattern is empty") }
            parts.append(.rule(Rule(pattern, source: "--trace")))
        }
        if let path = list.take("events") {
            guard !path.isEmpty else { throw .usage("--trace: the name of the file of events is empty") }
            parts.append(.file(path))
        }
        if let path = list.take("file") {
            guard !path.isEmpty else { throw .usage("--trace: the name of the file is empty") }
            file = path
        }
        try list.finish()
    }

    /// Puts the patterns of each `events=` file in its place: one a line; empty lines and lines that begin with `#` are skipped.
    ///
    /// - Parameter contents: The bytes of a file of at most `byteLimit`.
    mutating func load(_ contents: (String) throws(ToolError) -> [UInt8]) throws(ToolError) {
        var loaded: [Part] = []
        for part in parts {
            guard case .file(let path) = part else {
                loaded.append(part)
                continue
            }
            let lines = String(decoding: try contents(path), as: UTF8.self).split(
                omittingEmptySubsequences: false, whereSeparator: \.isNewline)
            for (index, line) in lines.enumerated() {
                let text = line.trimmingSpaces
                if !text.isEmpty && !text.hasPrefix("#") { loaded.append(.rule(Rule(text, source: "\(path):\(index + 1)"))) }
            }
        }
        parts = loaded
    }

    private var rules: [Rule] {
        parts.compactMap { if case .rule(let rule) = $0 { rule } else { nil } }
    }

    /// What is traced in the end.
    var points: Set<TraceEvent.Point> {
        var points: Set<TraceEvent.Point> = []
        for rule in rules {
            let matching = TraceEvent.Point.allCases.filter(rule.matches)
            if rule.isOn { points.formUnion(matching) } else { points.subtract(matching) }
        }
        return points
    }

    /// One line for each pattern that nothing matches: likely a misspelt name.
    var warnings: [String] {
        rules.filter { !TraceEvent.Point.allCases.contains(where: $0.matches) }.map {
            "\($0.source.sanitized()): no trace event is called '\($0.pattern.pattern.sanitized())' (-T help lists them)"
        }
    }

    /// Whether the value of `-T` asks for the names of all trace points.
    static func asksForNames(_ text: String) -> Bool { ["help", "?", "enable=help"].contains(text) }

    /// All trace points, one a line.
    static var names: String { TraceEvent.Point.allCases.map { $0.rawValue + "\n" }.joined() }
}

extension Substring {
    fileprivate var trimmingSpaces: String {
        String(drop { $0 == " " || $0 == "\t" }.reversed().drop { $0 == " " || $0 == "\t" }.reversed())
    }
}
