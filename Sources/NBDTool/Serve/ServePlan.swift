import NBDProtocol
import NBDServer

/// What `nbd serve` will do: options and configuration file, checked against each other. Pure: nothing has been opened or bound yet.
struct ServePlan: Sendable {
    enum Place: Hashable, Sendable {
        case tcp(host: String, port: Int)
        /// 127.0.0.1, and ::1 where the host has IPv6.
        case loopback(port: Int)
        /// A file system path, or an abstract name with a leading NUL.
        case unix(path: String)
        /// A socket in a directory of its own with a random name, removed at exit.
        case privateSocket
        /// The sockets of this name that the service manager passed (`SocketActivation`).
        case activated(name: String)
        /// One client, connected to standard input.
        case standardInput
    }

    struct ListenerPlan: Equatable, Sendable {
        var place: Place
        /// Every client of this listener is spoken to in the oldstyle protocol and gets this export.
        var oldstyleExport: String?
        var isListable = true
    }

    static let defaultPort = 10809

    /// Nodes to open first, in this order: the keys and values of each `--blockdev`.
    var blockDevices: [BlockDevicePlan] = []
    var exports: [ExportPlan] = []
    var listeners: [ListenerPlan] = []
    /// What the server will be told, but for what has to be opened first: listeners, TLS, who decides and who watches. Where nothing is said, it is as
    /// the library has it.
    var server = NBDServer.Configuration(listeners: [])

    /// nil: everything is in clear.
    var tls: TLSPlan?

    var access = AccessPlan()

    var runCommand: String?
    var exitsWithParent = false
    var forks = false
    var pidFile: String?
    var readyDescriptor: Int32?
    var printsURI = true
    /// SIGHUP ends the server, as it does qemu-nbd; otherwise it does nothing.
    var hangupStops = false

    var isVerbose = false
    var trace = TracePlan()

    /// - Parameters:
    ///   - configuration: The contents of `--config`, already read.
    ///   - activated: Names of the listening sockets inherited from a service manager; empty: none.
    /// - Throws: `.usage` naming the option or key at fault.
    init(_ options: ServeOptions, configuration: Configuration? = nil, activated: [String] = []) throws(ToolError) {
        if let configuration { try configuration.apply(to: &self) }
        for text in options.blockDevices { blockDevices.append(try BlockDevicePlan(parsing: text, options)) }
        try planExports(options)
        try planListeners(options, activated: activated)
        try planTLS(options)
        try planLimits(options)
        try access.add(options, tls: tls)
        try planLife(options, isActivated: !activated.isEmpty)
        for trace in options.traces { try self.trace.add(trace) }
        isVerbose = options.isVerbose
    }

    /// qemu-nbd has no limits but the number of clients (S-SRV-06), and serves one client once unless told otherwise (S-SRV-07).
    private mutating func planLimits(_ options: ServeOptions) throws(ToolError) {
        if options.style == .qemuNBD { server.connectionLimit = 1 }
        if let text = options.connectionLimit {
            guard let count = Int(text), 0...Int(Int32.max) ~= count else {
                throw .usage("Invalid shared device number '\(text.sanitized())': expected a number of clients, 0 for no limit")
            }
            server.connectionLimit = count
        }
        if let text = options.peerConnectionLimit { server.peerConnectionLimit = try Limits.count(text, "--max-connections-per-peer") }
        if let text = options.handshakeCountLimit { server.handshakeCountLimit = try Limits.count(text, "--max-handshakes") }
        if let text = options.peerHandshakeCountLimit { server.peerHandshakeCountLimit = try Limits.count(text, "--max-handshakes-per-peer") }
        if let text = options.stallLimit { server.stallLimit = try Limits.seconds(text, "--stall-limit") }
        if let text = options.progressLimit { server.progressLimit = try Limits.seconds(text, "--progress-limit") }
        if let text = options.peerSilenceLimit { server.peerTimeLimit = try Limits.seconds(text, "--peer-silence-limit") }
        if let text = options.requestLimit {
            guard let count = Int(text), Limits.requests ~= count else {
                throw .usage(
                    "invalid --requests '\(text.sanitized())': expected \(Limits.requests.lowerBound) to \(Limits.requests.upperBound)")
            }
            server.requestLimit = count
        }
        if let text = options.handshakeLimit { server.handshakeLimit = try Limits.seconds(text, "--handshake-limit") }
        if let text = options.drainLimit { server.drainLimit = try Limits.seconds(text, "--drain-limit", zero: "no time at all") }
        if let text = options.poll {
            guard let microseconds = Int(text) else { throw .usage("invalid --poll '\(text.sanitized())': expected microseconds, 0 for none") }
            server.pollLimit = try Limits.poll(microseconds, "--poll")
        }
        if let text = options.fastPath {
            guard text == "on" || text == "off" else { throw .usage("invalid --fast-path '\(text.sanitized())': expected on or off") }
            server.usesFastPath = text == "on"
        }
        if let text = options.memoryLimit {
            guard let size = ByteSize.parse(text) else { throw .usage("invalid --memory-limit '\(text.sanitized())'") }
            server.memoryLimit = try Limits.memory(size, "--memory-limit")
        }
        if let text = options.connectionMemoryLimit {
            guard let size = ByteSize.parse(text) else { throw .usage("invalid --connection-memory-limit '\(text.sanitized())'") }
            server.connectionMemoryLimit = try Limits.connectionMemory(size, "--connection-memory-limit")
        }
        server.connectionMemoryLimit = min(server.connectionMemoryLimit, server.memoryLimit)
    }

    /// Files that are read again while serving: credentials (SIGHUP), and the file of an `authz-list-file`.
    var watchedFiles: [String] {
        guard let tls else { return [] }
        guard case .file(let path, true) = tls.authorization else { return tls.credentials.files }
        return tls.credentials.files + [path]
    }

    private mutating func planLife(_ options: ServeOptions, isActivated: Bool) throws(ToolError) {
        server.stopsAfterLastClient = !(options.isPersistent ?? (options.style == .nbd)) || options.isSingle
        hangupStops = options.style == .qemuNBD
        runCommand = options.runCommand
        exitsWithParent = options.exitsWithParent
        forks = options.forks
        pidFile = options.pidFile ?? pidFile
        if forks && exitsWithParent { throw .usage("--fork and --exit-with-parent are mutually exclusive") }
        if forks && runCommand != nil { throw .usage("--fork and --run are mutually exclusive") }
        if forks && options.isSingle { throw .usage("--fork and --single are mutually exclusive") }
        if runCommand != nil && options.isSingle { throw .usage("--run and --single are mutually exclusive") }
        if pidFile == "" { throw .usage("the name of the pid file is empty") }
        if let text = options.readyDescriptor {
            guard let descriptor = Int32(text), descriptor >= 1 else {
                throw .usage("invalid --ready-fd '\(text.sanitized())': expected an open descriptor, 1 or higher")
            }
            readyDescriptor = descriptor
        }
        let isOutputOurs = runCommand == nil && !options.isSingle && !isActivated && options.style == .nbd
        printsURI = options.printsURI ?? isOutputOurs
        if printsURI && options.isSingle { throw .usage("--print-uri and --single are mutually exclusive: there is nothing to connect to") }
    }
}

/// Bounds that options and configuration files share.
enum Limits {
    static let requests = 1...1024

    /// Whole seconds, 0 to 2^31 - 1; 0 means no limit, if nothing else.
    static func seconds(_ text: String, _ option: String, zero: String = "no limit") throws(ToolError) -> Duration {
        guard let seconds = Int32(text), seconds >= 0 else {
            throw .usage("invalid \(option) '\(text.sanitized())': expected whole seconds, 0 for \(zero)")
        }
        return .seconds(seconds)
    }

    /// 0 to 2^31 - 1; 0 means no limit.
    static func count(_ text: String, _ option: String) throws(ToolError) -> Int {
        guard let count = Int32(text), count >= 0 else { throw .usage("invalid \(option) '\(text.sanitized())': expected a number, 0 for no limit") }
        return Int(count)
    }

    static func count(_ count: Int, _ key: String) throws(ToolError) -> Int { try self.count(String(count), key) }

    /// Looking for requests longer than it takes to be woken up only costs.
    static func poll(_ microseconds: Int, _ option: String) throws(ToolError) -> Duration {
        guard 0...10_000 ~= microseconds else { throw .usage("\(option) \(microseconds): expected 0 to 10000 microseconds") }
        return .microseconds(microseconds)
    }

    /// Memory for all clients: `MemoryBudget` never has less than 80 MiB, so that the largest request (S-LIM-01) always fits with its reply.
    static func memory(_ size: UInt64, _ option: String) throws(ToolError) -> Int {
        guard size >= 80 << 20 else { throw .usage("\(option) \(size) is too small: at least 80M, so that the largest request fits") }
        return Int(clamping: size)
    }

    /// Memory for one client. A larger request is served, too, but alone: so this can be small. Below 1 MiB, somebody forgot a suffix.
    static func connectionMemory(_ size: UInt64, _ option: String) throws(ToolError) -> Int {
        guard size >= 1 << 20 else { throw .usage("\(option) \(size) is too small: at least 1M") }
        return Int(clamping: size)
    }
}
