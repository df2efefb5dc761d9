import NBDProtocol

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Tells a service manager how the server is doing, by datagrams to the socket that `NOTIFY_SOCKET` names. See sd_notify(3).
struct ServiceNotifier: Equatable, Sendable {
    /// A path, or an abstract name with a leading NUL; nil when nobody listens.
    private(set) var path: String?

    /// Understands `/path` and `@abstract`; anything else (`vsock:`) means that nobody can be told.
    init(address: String?) {
        guard let address, address.utf8.count > 1, address.utf8.count <= HostProcess.socketPathLimit else { return }
        if address.hasPrefix("/") {
            path = address
        } else if address.hasPrefix("@") {
            path = "\0" + address.dropFirst()
        }
    }

    /// Takes the variable out of the environment, so that the children of this process cannot speak in its name.
    static func adopt() -> ServiceNotifier {
        let notifier = ServiceNotifier(address: HostProcess.variable("NOTIFY_SOCKET"))
        HostProcess.set(variable: "NOTIFY_SOCKET", to: nil)
        return notifier
    }

    var isAbstract: Bool { path?.utf8.first == 0 }

    func ready(_ status: String) { send(["READY=1", "STATUS=\(status.sanitized())", "MAINPID=\(getpid())"]) }
    func stopping() { send(["STOPPING=1", "STATUS=Finishing what is in flight"]) }

    /// A manager that cannot be reached is not a reason to fail: that is what sd_notify(3) recommends.
    private func send(_ lines: [String]) {
        guard let path else { return }
        let descriptor = socket(AF_UNIX, HostProcess.datagramType, 0)
        guard descriptor >= 0 else { return }
        defer { close(descriptor) }
        HostProcess.setCloseOnExec(descriptor, true)
        let bytes = Array(lines.joined(separator: "\n").utf8)
        // SAFETY: the address is valid during the call, and so is the buffer, whose own count is passed.
        _ = unsafe HostProcess.withAddress(ofUnixSocket: path) { address, length in
            unsafe bytes.withUnsafeBytes { unsafe sendto(descriptor, $0.baseAddress, $0.count, Self.flags, address, length) }
        }
    }

    #if canImport(Darwin)
    private static let flags: Int32 = 0
    #else
    private static let flags = Int32(MSG_NOSIGNAL)
    #endif
}
