import NBDProtocol
import NBDServer

/// Who may do what, and what this process may do itself: checked, but nothing has been opened.
struct AccessPlan: Equatable, Sendable {
    enum Sandbox: String, Equatable, Sendable, CaseIterable {
        /// Confined where the kernel can do it.
        case on
        case off
        /// Confined, or not started.
        case require

        init(text: String, _ option: String) throws(ToolError) {
            guard let sandbox = Sandbox(rawValue: text) else { throw .usage("invalid \(option) '\(text.sanitized())': expected on, off or require") }
            self = sandbox
        }
    }

    var allowed: [AccessRule] = []
    var denied: [AccessRule] = []
    /// A name or a number; who the process becomes once it has bound its addresses. nil: it stays who it is.
    var user: String?
    var group: String?
    var sandbox = Sandbox.on

    /// Adds the options to what the configuration file said.
    ///
    /// - Parameter tls: how the server will encrypt, which decides what rules can know of clients.
    mutating func add(_ options: ServeOptions, tls: ServePlan.TLSPlan?) throws(ToolError) {
        for (index, rule) in allowed.enumerated() { try rule.check("the configuration's allow[\(index)]", against: tls) }
        for (index, rule) in denied.enumerated() { try rule.check("the configuration's deny[\(index)]", against: tls) }
        func rule(_ text: String, _ option: String) throws(ToolError) -> AccessRule {
            let rule = try AccessRule(parsing: text, option: option)
            try rule.check("\(option) '\(text.sanitized())'", against: tls)
            return rule
        }
        for text in options.allows { allowed.append(try rule(text, "--allow")) }
        for text in options.denies { denied.append(try rule(text, "--deny")) }
        if !denied.isEmpty && allowed.isEmpty { throw .usage("--deny takes away what --allow gives: without --allow, nobody may do anything") }
        user = options.user ?? user
        group = options.group ?? group
        if user == "" { throw .usage("the name of the user is empty") }
        if group == "" { throw .usage("the name of the group is empty") }
        if let text = options.sandbox { sandbox = try Sandbox(text: text, "--sandbox") }
    }

    /// Who decides while serving; nil: everybody may do everything.
    ///
    /// - Parameter gate: what `--tls-authz` names. It is asked about clients with TLS alone: where TLS is optional, those in clear are for the rules.
    func authorizer(_ gate: TLSAuthorization?) -> AccessRules? {
        var rules = AccessRules(allowed: allowed, denied: denied)
        if let gate { rules.tlsVerdict = { gate.allows($0) } }
        return rules.isEmpty && gate == nil ? nil : rules
    }

    /// One line for each rule that fits none of these exports: likely a misspelt name.
    func warnings(exports: [String]) -> [String] {
        var warnings: [String] = []
        for (kind, rules) in [("allow", allowed), ("deny", denied)] {
            for rule in rules where !exports.contains(where: rule.exports.matches) {
                warnings.append("a rule to \(kind) something fits no export: there is none called '\(rule.exports.pattern.sanitized())'")
            }
        }
        return warnings
    }
}
