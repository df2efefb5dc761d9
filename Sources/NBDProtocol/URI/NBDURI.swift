/// Where an export is: `nbd://host:port/export` or `nbd+unix:///export?socket=path`.
///
///     scheme          reaches the server by     address
///     nbd, nbds       TCP (nbds: TLS must)      //[user@]host[:port]/export
///     nbd+unix, …s    Unix socket               //[user@]/export?socket=path     (%00 in front: the abstract namespace)
///     nbd+vsock, …s   vsock                     //cid[:port]/export
///
/// `description` prints it, and parsing what was printed gives an equal value. Spec: uri.md; PROTOCOL 14.2.
public struct NBDURI: Hashable, Sendable {
    public enum Address: Hashable, Sendable {
        /// A host name, an IPv4 address, or an IPv6 address without brackets; port 1…65535.
        case tcp(host: String, port: UInt16)
        /// A path, or NUL and a name in the abstract namespace (P-URI-02).
        case unix(path: String)
        case vsock(cid: UInt32, port: UInt32)
    }

    /// How the client proves who it is, and whom it believes (P-URI-06). Nothing given: the client's choice.
    public struct TLSParameters: Hashable, Sendable {
        public enum Kind: String, Sendable { case anon, x509, psk }
        public var kind: Kind?
        /// The name that the server's certificate must bear; nil: the host of the URI.
        public var hostname: String?
        public var verifiesPeer: Bool?
        /// A directory of certificates on our side (libnbd's layout); only when local files are allowed.
        public var certificates: String?
        /// A file of keys on our side; the same.
        public var preSharedKeys: String?

        public init(
            kind: Kind? = nil, hostname: String? = nil, verifiesPeer: Bool? = nil, certificates: String? = nil, preSharedKeys: String? = nil
        ) {
            self.kind = kind
            self.hostname = hostname
            self.verifiesPeer = verifiesPeer
            self.certificates = certificates
            self.preSharedKeys = preSharedKeys
        }
    }

    public var address: Address
    /// Decoded; empty: the default export (P-URI-04).
    public var exportName: String
    /// The scheme was one of `nbds…`: no TLS, no connection (P-URI-01).
    public var requiresTLS: Bool
    /// For pre-shared keys and the choice of a certificate; nil: the local login (P-URI-05).
    public var user: String?
    public var tls: TLSParameters

    public init(
        _ address: Address, exportName: String = "", requiresTLS: Bool = false, user: String? = nil, tls: TLSParameters = TLSParameters()
    ) {
        self.address = address
        self.exportName = exportName
        self.requiresTLS = requiresTLS
        self.user = user
        self.tls = tls
    }
}

extension NBDURI: CustomStringConvertible {
    /// The URI with everything percent-encoded that a shell or another parser might stumble over (P-URI-08). The port is always shown.
    public var description: String {
        var text = requiresTLS ? "nbds" : "nbd"
        let login = user.map { Percent.encode($0, keeping: "") + "@" } ?? ""
        var parameters: [String] = []
        switch address {
        case .tcp(let host, let port):
            let shown =
                host.utf8.contains(UInt8(ascii: ":")) ? "[\(Percent.encode(host, keeping: ":"))]" : Percent.encode(host, keeping: "")
            text += "://\(login)\(shown):\(port)/"
        case .unix(let path):
            text += "+unix://\(login)/"
            parameters.append("socket=" + Percent.encode(path, keeping: "/"))
        case .vsock(let cid, let port):
            text += "+vsock://\(login)\(cid):\(port)/"
        }
        text += Percent.encode(exportName, keeping: "/")
        if let kind = tls.kind { parameters.append("tls-type=\(kind.rawValue)") }
        if let hostname = tls.hostname { parameters.append("tls-hostname=" + Percent.encode(hostname, keeping: "")) }
        if let verifies = tls.verifiesPeer { parameters.append("tls-verify-peer=\(verifies ? 1 : 0)") }
        if let path = tls.certificates { parameters.append("tls-certificates=" + Percent.encode(path, keeping: "/")) }
        if let path = tls.preSharedKeys { parameters.append("tls-psk-file=" + Percent.encode(path, keeping: "/")) }
        return text + (parameters.isEmpty ? "" : "?" + parameters.joined(separator: "&"))
    }
}

/// Why some text is not an NBD URI we can use. What is quoted of it is fit to be shown.
public enum NBDURIError: Error, Hashable, Sendable, CustomStringConvertible {
    /// No `scheme://` in front.
    case notAURI
    case unknownScheme(String)
    /// A character that must be percent-encoded, or `%` without two hexadecimal digits; at this byte of the text.
    case badCharacter(at: Int)
    /// A part that is not UTF-8, has a NUL or a control character where none may be, or is too long.
    case badText(part: String)
    case badHost(String)
    case badPort(String)
    /// A Unix socket is named by `socket=`, not by a host.
    case unexpectedHost(String)
    case missingSocket
    case fragment
    case unknownParameter(String)
    case repeatedParameter(String)
    /// A parameter that is known but has this unusable value, or does not belong to the scheme.
    case badParameter(String, reason: String)

    public var description: String {
        switch self {
        case .notAURI: "not an NBD URI: expected nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH"
        case .unknownScheme(let scheme): "unknown URI scheme '\(scheme)': use nbd, nbds, nbd+unix or nbds+unix"
        case .badCharacter(let index): "character \(index + 1) of the URI must be percent-encoded, or its percent-encoding is broken"
        case .badText(let part): "the \(part) in the URI is not UTF-8 text, has control characters or is too long"
        case .badHost(let host): "bad host '\(host)' in the URI"
        case .badPort(let port): "bad port '\(port)' in the URI: use 1 to 65535"
        case .unexpectedHost(let host): "host '\(host)' in a URI for a Unix socket: write nbd+unix:///EXPORT?socket=PATH"
        case .missingSocket: "the URI lacks the parameter 'socket': write nbd+unix:///EXPORT?socket=PATH"
        case .fragment: "'#' in the URI: an NBD URI has no fragment (in names write %23)"
        case .unknownParameter(let name): "unknown parameter '\(name)' in the URI"
        case .repeatedParameter(let name): "parameter '\(name)' appears twice in the URI"
        case .badParameter(let name, let reason): "parameter '\(name)' in the URI: \(reason)"
        }
    }
}
