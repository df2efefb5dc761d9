import NBDServer

/// QEMU's `authz-list`: rules over a name, of which the first that matches decides.
struct NameList: Equatable, Sendable {
    enum Policy: String, Equatable, Sendable { case allow, deny }

    enum Format: String, Equatable, Sendable {
        /// The whole name, letter by letter.
        case exact
        /// `*` and `?`.
        case glob
    }

    struct Rule: Equatable, Sendable {
        var match: String
        var policy: Policy
        var format = Format.exact

        func matches(_ name: String) -> Bool {
            // Not `==`, for which two spellings of one letter are the same name.
            format == .glob ? Glob(match).matches(name) : match.utf8.elementsEqual(name.utf8)
        }
    }

    var rules: [Rule] = []
    /// When no rule matches.
    var policy = Policy.deny

    func allows(_ name: String) -> Bool { (rules.first { $0.matches(name) }?.policy ?? policy) == .allow }
}
