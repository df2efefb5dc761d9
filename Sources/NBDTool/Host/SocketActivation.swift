import NBDProtocol

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// The listening sockets that a service manager (or libnbd's `nbdinfo -- [ … ]`) opened for this process: `LISTEN_PID`, `LISTEN_FDS`
/// and `LISTEN_FDNAMES`. See sd_listen_fds(3); S-SRV-09, but any number of sockets.
struct SocketActivation: Equatable, Sendable {
    /// They are numbered from here.
    static let firstDescriptor: Int32 = 3
    /// More than any service has; keeps a hostile environment from costing anything.
    static let countLimit = 1024

    struct Socket: Equatable, Sendable {
        let descriptor: Int32
        /// What the unit file calls it (`FileDescriptorName=`); several sockets may have one name.
        let name: String
    }

    /// The name of sockets that were given none, as systemd has it.
    static let defaultName = "unknown"

    private(set) var sockets: [Socket] = []

    /// Reads the variables; empty when they are meant for another process or absent.
    ///
    /// - Throws: `.runtime` when they are meant for this process and make no sense.
    init(listenPID: String?, listenFDs: String?, names: String? = nil, processID: Int32) throws(ToolError) {
        guard let listenPID, let listenFDs, Int32(listenPID) == processID else { return }
        guard let count = Int(listenFDs), 0...Self.countLimit ~= count else {
            throw .runtime("LISTEN_FDS is '\(listenFDs.sanitized())': expected a number from 0 to \(Self.countLimit)")
        }
        let names = names.map { $0.split(separator: ":", omittingEmptySubsequences: false).map(String.init) }
        guard count == 0 || names?.count ?? count == count else {
            throw .runtime("LISTEN_FDNAMES has \(names?.count ?? 0) names for \(count) sockets")
        }
        sockets = (0..<count).map { Socket(descriptor: Self.firstDescriptor + Int32($0), name: names?[$0] ?? Self.defaultName) }
    }

    /// What the environment says, left as it is.
    static func current(processID: Int32 = getpid()) throws(ToolError) -> SocketActivation {
        try SocketActivation(
            listenPID: HostProcess.variable("LISTEN_PID"), listenFDs: HostProcess.variable("LISTEN_FDS"),
            names: HostProcess.variable("LISTEN_FDNAMES"), processID: processID)
    }

    /// Takes the sockets over: from now on they are this process's alone, and its children do not see the variables.
    ///
    /// - Parameter alternativeID: A second process id that counts as ours: that of the parent, which `--fork` has in between.
    /// - Throws: `.runtime` also when a descriptor is not a listening socket.
    static func adopt(alternativeID: Int32? = nil) throws(ToolError) -> SocketActivation {
        var activation = try current(processID: getpid())
        if activation.sockets.isEmpty, let alternativeID { activation = try current(processID: alternativeID) }
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] { HostProcess.set(variable: name, to: nil) }
        for descriptor in activation.sockets.map(\.descriptor) {
            guard HostProcess.socketKind(descriptor).isListening else {
                throw .runtime("descriptor \(descriptor), passed with LISTEN_FDS, is not a listening socket")
            }
            HostProcess.setCloseOnExec(descriptor, true)
        }
        return activation
    }
}
