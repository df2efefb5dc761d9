/// Which trace points are wanted and where their lines go: every `-T`/`--trace` together.
struct TracePlan: Equatable, Sendable {
    private(set) var patterns: [Glob] = []
    /// nil: standard error.
    private(set) var file: String?

    var isOn: Bool { !patterns.isEmpty }

    /// Reads `[enable=]GLOB[,file=PATH]`. Several options add up; the last file counts.
    ///
    /// - Throws: `.usage` for an unknown key (`events=` of QEMU among them) and an empty pattern or file name.
    mutating func add(_ text: String) throws(ToolError) {
        // The first field may come without its key, and only the first.
        let isBare = text.prefix { $0 != "," }.contains("=") == false
        var list = try KeyValueList(isBare ? "enable=" + text : text, context: "--trace")
        if let pattern = list.take("enable") {
            guard !pattern.isEmpty else { throw .usage("--trace: the pattern is empty") }
            patterns.append(Glob(pattern: pattern))
        }
        if let path = list.take("file") {
            guard !path.isEmpty else { throw .usage("--trace: the name of the file is empty") }
            file = path
        }
        try list.finish()
    }

    func contains(_ event: String) -> Bool {
        patterns.contains { $0.matches(event) }
    }
}
