import NBDProtocol
import NBDServer

extension AccessRule {
    /// Reads the value of `--allow` and `--deny`:
    ///
    ///     [export=GLOB][,from=NETWORK+NETWORK+unix…][,uid=N+N…][,gid=N…][,pid=N…][,tls=on|off][,tls-dn=GLOB][,tls-user=GLOB],may=WHAT+WHAT…
    ///
    /// A comma inside a value is written twice. `may` may be missing in `--deny`: then it denies everything.
    ///
    /// - Throws: `.usage` naming the option and the key at fault.
    init(parsing text: String, option: String) throws(ToolError) {
        var list = try KeyValueList(text, context: option)
        func split(_ key: String) -> [String]? { list.take(key).map { $0.split(separator: "+", omittingEmptySubsequences: false).map(String.init) } }
        let may = split("may")
        guard may != nil || option == "--deny" else { throw .usage("\(option): 'may' is missing: what is allowed?") }
        self.init(try Permissions(words: may ?? ["all"], context: "\(option): 'may'"))
        if let pattern = list.take("export") { exports = Glob(pattern) }
        origins = try (split("from") ?? []).map { text throws(ToolError) in try Origin(text, context: "\(option): 'from'") }
        uids = try Self.numbers(split("uid"), "\(option): 'uid'")
        gids = try Self.numbers(split("gid"), "\(option): 'gid'")
        pids = try Self.numbers(split("pid"), "\(option): 'pid'")
        usesTLS = try list.takeSwitch("tls")
        distinguishedName = list.take("tls-dn").map { Glob($0) }
        pskUser = list.take("tls-user").map { Glob($0) }
        try list.finish()
        try check(option)
    }

    /// - Throws: `.usage` for a rule that fits nobody, which can only be a mistake.
    func check(_ place: String) throws(ToolError) {
        if let contradiction { throw .usage("\(place): fits nobody: \(contradiction)") }
    }

    /// Looks for conditions on what TLS as planned proves of no client: a rule to deny something would let everybody through.
    ///
    /// - Throws: `.usage` naming the key, and what the server would need.
    func check(_ place: String, against tls: ServePlan.TLSPlan?) throws(ToolError) {
        func refusal(_ key: String, _ reason: String) -> ToolError { .usage("\(place): '\(key)' fits nobody: \(reason)") }
        guard let tls else {
            if usesTLS == true { throw refusal("tls", "without --tls-creds, no client has TLS") }
            if distinguishedName != nil { throw refusal("tls-dn", "without --tls-creds, no client has a TLS identity") }
            if pskUser != nil { throw refusal("tls-user", "without --tls-creds, no client has a TLS identity") }
            return
        }
        switch tls.credentials.kind {
        case .x509(let verifiesPeer, _):
            if pskUser != nil { throw refusal("tls-user", "the server's credentials are certificates, not pre-shared keys") }
            if distinguishedName != nil, !verifiesPeer { throw refusal("tls-dn", "with verify-peer=off, no client shows a certificate") }
        case .psk:
            if distinguishedName != nil { throw refusal("tls-dn", "the server's credentials are pre-shared keys, not certificates") }
        }
    }

    static func numbers<Number: FixedWidthInteger>(_ texts: [String]?, _ context: String) throws(ToolError) -> [Number] {
        try (texts ?? []).map { text throws(ToolError) in
            guard let first = text.utf8.first, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(first), let number = Number(text) else {
                throw .usage("\(context) is a number, as `id` shows it, not '\(text.sanitized())'")
            }
            return number
        }
    }
}

extension AccessRule.Origin {
    /// Reads `unix`, an address or a network.
    init(_ text: String, context: String) throws(ToolError) {
        if text == "unix" {
            self = .unix
        } else if let network = IPNetwork(text) {
            self = .network(network)
        } else {
            throw .usage(
                "\(context) is 'unix', an address or a network such as 10.0.0.0/8 or 2001:db8::/32, without bits behind its length, not '\(text.sanitized())'"
            )
        }
    }
}

extension Permissions {
    static let words: [(word: String, permissions: Permissions)] = [
        ("list", .list), ("read", .read), ("write", .write), ("trim", .trim), ("contexts", .contexts), ("all", .all),
    ]

    /// - Throws: `.usage` for an unknown word and for none.
    init(words: [String], context: String) throws(ToolError) {
        self = []
        for word in words {
            guard let known = Self.words.first(where: { $0.word == word }) else {
                throw .usage("\(context) is made of \(Self.words.map(\.word).joined(separator: ", ")), joined by '+', not '\(word.sanitized())'")
            }
            formUnion(known.permissions)
        }
        guard !isEmpty else { throw .usage("\(context) is empty") }
    }
}
