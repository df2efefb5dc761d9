/// What the user says of a node and those below it, as in QEMU's `--blockdev` and `--image-opts`:
///
///     driver=raw,node-name=disk,file.driver=file,file.filename=/srv/a.img
///     driver=qcow2,file=image,backing.driver=raw,backing.file=base        "image" and "base": nodes that exist
///
/// Drivers `take` what they know; what is left then is an error that names it.
public struct NodeOptions: Equatable, Sendable {
    /// Deeper chains are a mistake.
    public static let depthLimit = 256

    /// Where these options stand among those that the user gave: `file.backing.`, for messages.
    public let place: String
    private var values: [String: String] = [:]

    /// - Parameter pairs: keys with dots for the nodes below; each once.
    /// - Throws: `.invalid` for an empty key or one that is given twice.
    public init(_ pairs: [(key: String, value: String)]) throws(GraphError) {
        place = ""
        for (key, value) in pairs {
            guard !key.isEmpty, !key.hasPrefix("."), !key.hasSuffix("."), key.split(separator: ".").count <= Self.depthLimit else {
                throw GraphError(.invalid, "'\(key)' is no key")
            }
            guard values.updateValue(value, forKey: key) == nil else { throw GraphError(.invalid, "'\(key)' is given twice") }
        }
    }

    private init(place: String, _ values: [String: String]) {
        self.place = place
        self.values = values
    }

    public var isEmpty: Bool { values.isEmpty }
    /// What nobody has taken.
    public var keys: [String] { values.keys.sorted().map { place + $0 } }

    /// What the options mean that give the name of a file and no driver.
    mutating func setDefault(driver: String) {
        if values["filename"] != nil, values["driver"] == nil { values["driver"] = driver }
    }

    /// Removes and returns the value of `key`.
    public mutating func take(_ key: String) -> String? { values.removeValue(forKey: key) }

    /// The value of `key`, which must be there.
    public mutating func require(_ key: String, of driver: String) throws(GraphError) -> String {
        guard let value = take(key) else { throw GraphError(.invalid, "driver '\(driver)' needs \(place)\(key)=") }
        return value
    }

    /// `on`, `off`, `true`, `false`, `yes`, `no`.
    public mutating func takeFlag(_ key: String) throws(GraphError) -> Bool? {
        guard let text = take(key) else { return nil }
        switch text {
        case "on", "true", "yes": return true
        case "off", "false", "no": return false
        default: throw GraphError(.invalid, "\(place)\(key)=\(text) is neither on nor off")
        }
    }

    /// One of `choices`.
    public mutating func takeChoice(_ key: String, _ choices: [String]) throws(GraphError) -> String? {
        guard let text = take(key) else { return nil }
        guard choices.contains(text) else {
            throw GraphError(.invalid, "\(place)\(key)=\(text) is none of \(choices.joined(separator: ", "))")
        }
        return text
    }

    /// Bytes: a number, perhaps with one of the suffixes k, M, G, T, P, E (powers of 1024).
    public mutating func takeSize(_ key: String) throws(GraphError) -> UInt64? {
        guard let text = take(key) else { return nil }
        let factors: [Character: UInt64] = ["b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60]
        let shift = text.last.flatMap { factors[Character($0.lowercased())] }
        let digits = shift == nil ? text[...] : text.dropLast()
        guard digits.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }), let number = UInt64(digits),
            number <= UInt64(Int64.max) >> (shift ?? 0)
        else { throw GraphError(.invalid, "\(place)\(key)=\(text) is not a size below 2^63 bytes") }
        return number << (shift ?? 0)
    }

    /// Removes and returns what is said of the node below under `key`: another node's name (`file=NAME`), or options (`file.driver=…`).
    ///
    /// - Throws: `.invalid` when it is both.
    public mutating func takeChild(_ key: String) throws(GraphError) -> Child? {
        let prefix = key + "."
        var inner: [String: String] = [:]
        for (name, value) in values where name.hasPrefix(prefix) { inner[String(name.dropFirst(prefix.count))] = value }
        for name in inner.keys { values[prefix + name] = nil }
        let reference = take(key)
        switch (reference, inner.isEmpty) {
        case (nil, true): return nil
        case (let name?, true): return .reference(name)
        case (nil, false): return .options(NodeOptions(place: place + prefix, inner))
        case (let name?, false):
            throw GraphError(.invalid, "\(place)\(key)=\(name) names a node, so \(place)\(prefix)\(inner.keys.min() ?? "") cannot describe it")
        }
    }

    public enum Child: Equatable, Sendable {
        case reference(String)
        case options(NodeOptions)
    }
}
