import NBDProtocol

/// An option of qemu-nbd that this server knows and cannot do: never ignored, always refused with the reason.
enum UnsupportedOption: Equatable, Sendable {
    case connect, disconnect, selinuxLabel

    /// One line that names the option and says why.
    var message: String {
        switch self {
        case .connect: "--connect is not supported: this server does not attach kernel devices (nbd-client does)"
        case .disconnect: "--disconnect is not supported: this server does not attach kernel devices (nbd-client does)"
        case .selinuxLabel: "--selinux-label is not supported"
        }
    }
}
