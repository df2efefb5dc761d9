import FoundationEssentials
import NBDProtocol

/// The file of `authz-list-file`, as QEMU has it:
///
///     { "rules": [ { "match": "O=Example,CN=client", "policy": "allow", "format": "exact" } ], "policy": "deny" }
///
/// Unknown keys are errors.
extension NameList: Decodable {
    /// A list longer than this is a mistake.
    static let byteLimit = 1 << 20

    /// - Throws: `.runtime` naming the file and the place in it.
    init(contents: [UInt8], path: String) throws(ToolError) {
        do {
            self = try JSONDecoder().decode(NameList.self, from: Data(contents))
        } catch {
            throw .runtime("'\(path.sanitized())': \(DecodingError.line(error))")
        }
    }

    init(from decoder: any Decoder) throws {
        let keys = try StrictKeys(decoder, ["rules", "policy"])
        rules = try keys.decode("rules") ?? []
        policy = try keys.decode("policy") ?? .deny
    }
}

extension NameList.Policy: Decodable {}
extension NameList.Format: Decodable {}

extension NameList.Rule: Decodable {
    init(from decoder: any Decoder) throws {
        let keys = try StrictKeys(decoder, ["match", "policy", "format"])
        match = try keys.require("match")
        policy = try keys.require("policy")
        format = try keys.decode("format") ?? .exact
    }
}

extension DecodingError {
    /// What is wrong, in one line.
    static func line(_ error: any Error) -> String {
        switch error {
        case DecodingError.keyNotFound(let key, let context): "key '\((context.codingPath + [key]).dotted)' is missing"
        case DecodingError.typeMismatch(_, let context), DecodingError.valueNotFound(_, let context):
            "the value of '\(context.codingPath.dotted)' has the wrong type: \(context.debugDescription)".sanitized()
        case DecodingError.dataCorrupted(let context):
            ((context.codingPath.isEmpty ? "" : "'\(context.codingPath.dotted)': ") + context.debugDescription).sanitized()
        default: "\(error)".sanitized()
        }
    }
}
