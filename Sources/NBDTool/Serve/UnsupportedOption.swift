import NBDProtocol

/// An option of qemu-nbd that this server knows and cannot do: never ignored, always refused with the reason.
enum UnsupportedOption: Equatable, Sendable {
    case object, tlsCreds, tlsAuthz, tlsHostname, connect, disconnect, selinuxLabel

    /// One line that names the option and says why.
    var message: String {
        switch self {
        case .object: "--object is not supported: neither TLS credentials nor secrets can be given yet"
        case .tlsCreds: "--tls-creds is not supported: connections cannot be encrypted yet"
        case .tlsAuthz: "--tls-authz is not supported: connections cannot be encrypted yet"
        case .tlsHostname: "--tls-hostname is not supported: connections cannot be encrypted yet"
        case .connect: "--connect is not supported: this server does not attach kernel devices (nbd-client does)"
        case .disconnect: "--disconnect is not supported: this server does not attach kernel devices (nbd-client does)"
        case .selinuxLabel: "--selinux-label is not supported"
        }
    }
}
