import FoundationEssentials
import NBDProtocol

/// The contents of `--config`: TOML in a file named `….toml`, JSON in one named `….json`; the same keys in both.
///
///     default-export = "disk"
///     pid-file = "/run/nbd.pid"
///     [limits]
///     connections = 100
///     [[listeners]]
///     host = "127.0.0.1"
///     [[exports]]
///     name = "disk"
///     file = "/srv/disk.raw"
///
/// Unknown keys are errors. docs/serve.md lists all keys.
struct Configuration: Equatable, Sendable {
    /// A configuration longer than this is a mistake.
    static let byteLimit = 1 << 20

    struct Limits: Equatable, Sendable {
        var connections: Int?
        var connectionsPerPeer: Int?
        var handshakes: Int?
        var handshakesPerPeer: Int?
        var requests: Int?
        /// Seconds.
        var handshake: Int?
        var stall: Int?
        var progress: Int?
        var peerSilence: Int?
        var drain: Int?
        var memory: ConfiguredSize?
        var connectionMemory: ConfiguredSize?
    }

    struct TLS: Equatable, Sendable {
        /// x509 (the default), psk.
        var credentials: String?
        var directory: String
        var verifyPeer: Bool?
        /// required (the default), optional.
        var mode: String?
    }

    struct Listener: Equatable, Sendable {
        var host: String?
        var port: Int?
        var unix: String?
        /// A name in `LISTEN_FDNAMES`.
        var activated: String?
        var oldstyle: String?
        var list: Bool?
    }

    struct Export: Equatable, Sendable {
        var name: String
        var description: String?
        var file: String?
        var memory: ConfiguredSize?
        var null: ConfiguredSize?
        var pattern: ConfiguredSize?
        var format: String?
        var readOnly: Bool?
        /// required, optional.
        var tls: String?
        var offset: ConfiguredSize?
        var size: ConfiguredSize?
        var cache: String?
        var discard: String?
        var detectZeroes: String?
        var aio: String?
        var locking: Bool?
        var allocationDepth: Bool?
        var bitmap: [String]?
        var track: [String]?
    }

    /// What `--allow` and `--deny` say: see `AccessRule(parsing:)`.
    struct Rule: Equatable, Sendable {
        var export: String?
        var from = ConfiguredList<String>.none
        var uid = ConfiguredList<UInt32>.none
        var gid = ConfiguredList<UInt32>.none
        var pid = ConfiguredList<Int32>.none
        var tls: Bool?
        var tlsDN: String?
        var tlsUser: String?
        var may: ConfiguredList<String>?
    }

    /// For messages.
    var path = ""
    var defaultExport: String?
    var pidFile: String?
    /// Microseconds.
    var poll: Int?
    var fastPath: Bool?
    var user: String?
    var group: String?
    var sandbox: String?
    var tls: TLS?
    var limits: Limits?
    var listeners: [Listener]?
    var exports: [Export]?
    var allow: [Rule]?
    var deny: [Rule]?

    /// - Throws: `.usage` naming the file, and the key or the place in it.
    init(contents: [UInt8], path: String) throws(ToolError) {
        guard contents.count <= Self.byteLimit else { throw .usage("\(path): larger than \(Self.byteLimit) bytes: not a configuration") }
        guard let text = String(validating: contents, as: UTF8.self) else { throw .usage("\(path): not UTF-8") }
        do {
            if path.hasSuffix(".toml") {
                let json = TOMLValue.table(try TOMLReader.read(text)).json
                self = try JSONDecoder().decode(Configuration.self, from: Data(json.utf8))
            } else if path.hasSuffix(".json") {
                self = try JSONDecoder().decode(Configuration.self, from: Data(contents))
            } else {
                throw ToolError.usage("\(path): the name of a configuration ends in .toml or .json")
            }
        } catch {
            throw Self.explain(error, path)
        }
        self.path = path
    }

    private static func explain(_ error: any Error, _ path: String) -> ToolError {
        switch error {
        case let error as ToolError: return error
        case let error as TOMLError:
            return .usage("\(path): line \(error.line), column \(error.column): \(error.reason)")
        case DecodingError.keyNotFound(let key, let context):
            return .usage("\(path): key '\((context.codingPath + [key]).dotted)' is missing")
        case DecodingError.typeMismatch(_, let context), DecodingError.valueNotFound(_, let context):
            return .usage("\(path): the value of '\(context.codingPath.dotted)' has the wrong type: \(context.debugDescription)".singleLine)
        case DecodingError.dataCorrupted(let context):
            let place = context.codingPath.isEmpty ? "" : "'\(context.codingPath.dotted)': "
            return .usage("\(path): \(place)\(context.debugDescription)".singleLine)
        default:
            return .usage("\(path): \(error)".singleLine)
        }
    }
}

/// Bytes: an integer, or a string that `ByteSize` understands.
struct ConfiguredSize: Equatable, Sendable, Decodable {
    var byteCount: UInt64

    init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if let text = try? container.decode(String.self) {
            guard let size = ByteSize.parse(text) else { throw Self.invalid("'\(text.sanitized())'", decoder) }
            byteCount = size
        } else {
            let number = try container.decode(Int64.self)
            guard number >= 0 else { throw Self.invalid("\(number)", decoder) }
            byteCount = UInt64(number)
        }
    }

    private static func invalid(_ value: String, _ decoder: any Decoder) -> DecodingError {
        .dataCorrupted(.init(codingPath: decoder.codingPath, debugDescription: "\(value) is not a size"))
    }
}

/// One value or an array of them. An empty array is an error: it could be taken for nobody as well as for everybody.
struct ConfiguredList<Element: Decodable & Equatable & Sendable>: Equatable, Sendable, Decodable {
    var elements: [Element]

    static var none: Self { Self(elements: []) }

    init(elements: [Element]) { self.elements = elements }

    init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if let one = try? container.decode(Element.self) {
            elements = [one]
        } else {
            guard (try? decoder.unkeyedContainer()) != nil else {
                let expected = Element.self == UInt32.self ? "a number from 0 to \(UInt32.max)" : "a text"
                throw DecodingError.dataCorruptedError(in: container, debugDescription: "expected \(expected), or an array of such")
            }
            // This error names the element.
            elements = try container.decode([Element].self)
        }
        guard !elements.isEmpty else {
            throw DecodingError.dataCorruptedError(in: container, debugDescription: "is empty: without the key, anything fits")
        }
    }
}

extension [any CodingKey] {
    /// `exports[0].file`.
    var dotted: String {
        reduce(into: "") { text, key in
            if let index = key.intValue {
                text += "[\(index)]"
            } else {
                text += (text.isEmpty ? "" : ".") + key.stringValue
            }
        }
    }
}

extension String {
    fileprivate var singleLine: String {
        split(whereSeparator: \.isNewline).joined(separator: " ")
    }
}
