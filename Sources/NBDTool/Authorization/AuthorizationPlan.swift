import NBDProtocol

/// An `authz-…` object, checked but not opened: who may come in over TLS, by the name that TLS has proved.
///
///     authz-simple,id=ID,identity=NAME
///     authz-list,id=ID[,policy=allow|deny][,rules.0.match=NAME,rules.0.policy=allow|deny[,rules.0.format=exact|glob]]…
///     authz-list-file,id=ID,filename=PATH[,refresh=on|off]
///
/// The name is the distinguished name of the client's certificate, `O=Example,CN=client` (a comma is written twice on a command line), or
/// the user of its pre-shared key (S-TLS-08).
enum AuthorizationPlan: Equatable, Sendable {
    case list(NameList)
    case file(path: String, refreshes: Bool)

    static let types: Set<String> = ["authz-simple", "authz-list", "authz-list-file", "authz-pam"]

    /// - Parameters:
    ///   - type: one of `types`.
    ///   - keys: without `id`.
    /// - Throws: `.usage` naming the object and the key at fault.
    init(type: String, keys: KeyValueList) throws(ToolError) {
        var keys = keys
        switch type {
        case "authz-simple":
            guard let identity = keys.take("identity"), !identity.isEmpty else { throw .usage("\(keys.context): 'identity' is missing") }
            self = .list(NameList(rules: [.init(match: identity, policy: .allow)]))
        case "authz-list":
            self = .list(try Self.list(&keys))
        case "authz-list-file":
            guard let path = keys.take("filename"), !path.isEmpty else { throw .usage("\(keys.context): 'filename' is missing") }
            self = .file(path: path, refreshes: try keys.takeSwitch("refresh") ?? true)
        default:
            throw .usage(
                "\(keys.context): the modules of PAM are not loaded into a server that strangers talk to: use authz-list or authz-list-file")
        }
        try keys.finish()
    }

    /// Rules are numbered from 0 without gaps; more than these are a mistake.
    private static let ruleLimit = 10_000

    private static func list(_ keys: inout KeyValueList) throws(ToolError) -> NameList {
        let context = keys.context
        func choice<T: RawRepresentable<String>>(_ key: String, _ known: String, _ keys: inout KeyValueList) throws(ToolError) -> T? {
            guard let text = keys.take(key) else { return nil }
            guard let value = T(rawValue: text) else { throw .usage("\(context): '\(key)' is \(known), not '\(text.sanitized())'") }
            return value
        }
        var list = NameList()
        list.policy = try choice("policy", "allow or deny", &keys) ?? .deny
        for index in 0..<ruleLimit {
            let prefix = "rules.\(index)."
            guard let match = keys.take(prefix + "match") else { break }
            guard let policy: NameList.Policy = try choice(prefix + "policy", "allow or deny", &keys) else {
                throw .usage("\(context): '\(prefix)policy' is missing")
            }
            list.rules.append(.init(match: match, policy: policy, format: try choice(prefix + "format", "exact or glob", &keys) ?? .exact))
        }
        return list
    }
}
