import NBDProtocol

extension ServePlan {
    struct TLSPlan: Equatable, Sendable {
        var credentials: TLSCredentialsPlan
        var policy = TLSPolicy.required
        /// Who may come in, by the name that TLS has proved. nil: whoever has proved one, if a certificate or a key is asked for at all.
        var authorization: AuthorizationPlan?
    }

    /// Credentials on the command line replace those of the configuration file (S-TLS-01, S-TLS-14).
    mutating func planTLS(_ options: ServeOptions) throws(ToolError) {
        let objects = try ToolObject.all(options.objects)
        if options.tlsHostname != nil { throw .usage("--tls-hostname is for clients: `nbd info`, `nbd list` and qemu-nbd --list have it") }
        if let id = options.tlsCredentials {
            tls = TLSPlan(credentials: try Self.credentials(id, objects, .server), policy: tls?.policy ?? .required)
        }
        if let text = options.tlsMode {
            guard tls != nil else { throw .usage("--tls needs --tls-creds") }
            tls?.policy = try Self.policy(text, "--tls")
        }
        if tls == nil, options.style == .nbd {
            for (id, object) in objects.sorted(by: { $0.key < $1.key }) {
                guard case .tlsCredentials = object else { continue }
                throw .usage("--object: the credentials '\(id.sanitized())' are not used: encrypt with them by --tls-creds \(id.sanitized())")
            }
        }
        if let id = options.tlsAuthorization {
            guard tls != nil else { throw .usage("--tls-authz is not permitted without --tls-creds") }
            guard case .authorization(let plan) = objects[id] else {
                throw .usage("--tls-authz: there is no authorization '\(id.sanitized())': describe it by --object authz-…,id=…")
            }
            tls?.authorization = plan
        }
        for export in exports where export.requiresTLS && tls == nil {
            throw .usage("export '\(export.name.sanitized())' requires TLS: give --tls-creds, too")
        }
        guard tls?.policy == .required else { return }
        for listener in listeners where listener.oldstyleExport != nil {
            throw .usage("an oldstyle listener cannot encrypt: it is mutually exclusive with TLS that is required")
        }
    }

    static func policy(_ text: String, _ place: String) throws(ToolError) -> TLSPolicy {
        switch text {
        case "required": return .required
        case "optional": return .optional
        default: throw .usage("\(place): '\(text.sanitized())' is neither required nor optional")
        }
    }

    /// What `--tls-creds` names.
    ///
    /// - Throws: `.usage` when there is none, or one for the other end.
    static func credentials(
        _ id: String, _ objects: [String: ToolObject], _ endpoint: TLSCredentialsPlan.Endpoint
    ) throws(ToolError) -> TLSCredentialsPlan {
        guard case .tlsCredentials(let credentials) = objects[id] else {
            throw .usage("--tls-creds: there are no TLS credentials '\(id.sanitized())': describe them by --object tls-creds-…,id=…")
        }
        guard credentials.endpoint == endpoint else {
            throw .usage("--tls-creds: '\(id)' is for a \(credentials.endpoint): give its object endpoint=\(endpoint)")
        }
        return credentials
    }
}
