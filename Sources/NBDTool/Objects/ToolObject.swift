import NBDProtocol

/// What a `--object` describes, checked as far as it can be without opening anything.
enum ToolObject: Equatable, Sendable {
    case tlsCredentials(TLSCredentialsPlan)
    case authorization(AuthorizationPlan)

    /// Every `--object` of a command line, by its id.
    ///
    /// - Throws: `.usage` naming the object and the key at fault, or the type that is not known.
    static func all(_ texts: [String]) throws(ToolError) -> [String: ToolObject] {
        var objects: [String: ToolObject] = [:]
        for definition in try ObjectDefinition.all(texts) { objects[definition.id] = try ToolObject(definition) }
        return objects
    }

    private init(_ definition: ObjectDefinition) throws(ToolError) {
        switch definition.type {
        case "tls-creds-x509", "tls-creds-psk", "tls-creds-anon": self = .tlsCredentials(try TLSCredentialsPlan(definition))
        case let type where AuthorizationPlan.types.contains(type):
            self = .authorization(try AuthorizationPlan(type: type, keys: definition.keys))
        default:
            throw .usage("--object: type '\(definition.type.sanitized())' is not supported")
        }
    }
}
