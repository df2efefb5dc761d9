import NBDServer

extension Configuration {
    /// Rules of the file and of the command line add up.
    func applyAccess(to plan: inout AccessPlan) throws(ToolError) {
        plan.user = user
        plan.group = group
        if let sandbox { plan.sandbox = try AccessPlan.Sandbox(text: sandbox, "sandbox") }
        for (key, rules) in [("allow", allow), ("deny", deny)] where rules?.isEmpty == true {
            throw .usage("\(key) is empty: without any rule, everybody may do everything; to say that, leave it out")
        }
        for (index, rule) in (allow ?? []).enumerated() { plan.allowed.append(try self.rule(rule, "allow[\(index)]", needsMay: true)) }
        for (index, rule) in (deny ?? []).enumerated() { plan.denied.append(try self.rule(rule, "deny[\(index)]", needsMay: false)) }
    }

    private func rule(_ configured: Rule, _ place: String, needsMay: Bool) throws(ToolError) -> AccessRule {
        guard configured.may != nil || !needsMay else { throw .usage("\(place): 'may' is missing: what is allowed?") }
        var rule = AccessRule(try Permissions(words: configured.may?.elements ?? ["all"], context: "\(place).may"))
        if let pattern = configured.export { rule.exports = Glob(pattern) }
        rule.origins = try configured.from.elements.map { text throws(ToolError) in try AccessRule.Origin(text, context: "\(place).from") }
        rule.uids = configured.uid.elements
        rule.gids = configured.gid.elements
        rule.pids = configured.pid.elements
        rule.usesTLS = configured.tls
        rule.distinguishedName = configured.tlsDN.map { Glob($0) }
        rule.pskUser = configured.tlsUser.map { Glob($0) }
        try rule.check(place)
        return rule
    }
}
