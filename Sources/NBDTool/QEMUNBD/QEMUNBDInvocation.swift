import NBDProtocol

/// What a command line of qemu-nbd asks for.
enum QEMUNBDInvocation: Equatable, Sendable {
    case help
    case version
    /// `-T help`.
    case traceNames
    /// `-L`: list the exports of another server.
    case list(NBDURI.Address, TLSClientPlan?)
    case serve(ServeOptions)

    static let options: [OptionScanner.Option] = [
        .init("help", "h"), .init("version", "V"), .init("bind", "b", takesValue: true), .init("port", "p", takesValue: true),
        .init("socket", "k", takesValue: true), .init("offset", "o", takesValue: true), .init("read-only", "r"),
        .init("allocation-depth", "A"), .init("bitmap", "B", takesValue: true), .init("connect", "c", takesValue: true),
        .init("disconnect", "d"), .init("list", "L"), .init("snapshot", "s"), .init("load-snapshot", "l", takesValue: true),
        .init("nocache", "n"), .init("cache", takesValue: true), .init("aio", takesValue: true), .init("discard", takesValue: true),
        .init("detect-zeroes", takesValue: true), .init("shared", "e", takesValue: true), .init("format", "f", takesValue: true),
        .init("persistent", "t"), .init("verbose", "v"), .init("object", takesValue: true),
        .init("export-name", "x", takesValue: true), .init("description", "D", takesValue: true), .init("tls-creds", takesValue: true),
        .init("tls-hostname", takesValue: true), .init("tls-authz", takesValue: true), .init("image-opts"),
        .init("trace", "T", takesValue: true), .init("fork"), .init("pid-file", takesValue: true),
        .init("selinux-label", takesValue: true), .init("handshake-limit", takesValue: true),
        .init("allow-path", takesValue: true), .init("probe-backing"),
    ]

    /// - Parameter arguments: Without the name of the program.
    /// - Throws: `.usage` for what qemu-nbd refuses and for what cannot be done here (`UnsupportedOption`).
    init(_ arguments: [String]) throws(ToolError) {
        var options = ServeOptions(style: .qemuNBD)
        var isList = false
        /// What list mode has no use for.
        var exportOption: String?
        for item in try OptionScanner(options: Self.options).scan(arguments) {
            switch item {
            case .operand(let operand):
                options.images.append(operand)
            case .option("help", _):
                self = .help
                return
            case .option("version", _):
                self = .version
                return
            case .option("trace", let value?) where TracePlan.asksForNames(value):
                self = .traceNames
                return
            case .option("list", _):
                isList = true
            case .option(let name, let value):
                try Self.apply(name, value ?? "", to: &options)
                if Self.perExport.contains(name) { exportOption = name }
            }
        }
        guard isList else {
            self = .serve(options)
            return
        }
        guard options.images.isEmpty else { throw .usage("List mode is incompatible with a file name") }
        if let exportOption { throw .usage("List mode is incompatible with per-device settings (--\(exportOption))") }
        if options.forks { throw .usage("List mode is incompatible with forking") }
        if options.tlsAuthorization != nil { throw .usage("--tls-authz is incompatible with export list") }
        if options.tlsHostname != nil, options.tlsCredentials == nil { throw .usage("--tls-hostname is not permitted without --tls-creds") }
        self = .list(try Self.address(options), try TLSClientPlan(options))
    }

    private static let perExport: Set<String> = [
        "export-name", "description", "offset", "format", "aio", "discard", "cache", "nocache", "detect-zeroes", "image-opts",
        "allocation-depth", "bitmap",
        "snapshot", "load-snapshot", "allow-path", "probe-backing",
    ]

    private static func apply(_ name: String, _ value: String, to options: inout ServeOptions) throws(ToolError) {
        switch name {
        case "port": options.port = value
        case "bind": options.binds.append(value)
        case "socket": options.sockets.append(value)
        case "offset": options.offset = value
        case "read-only": options.isReadOnly = true
        case "nocache", "cache":
            guard options.cache == nil else { throw .usage("-n and --cache can only be specified once") }
            options.cache = name == "cache" ? value : "none"
        case "aio":
            guard options.aio == nil else { throw .usage("--aio can only be specified once") }
            options.aio = value
        case "discard":
            guard options.discard == nil else { throw .usage("--discard can only be specified once") }
            options.discard = value
        case "detect-zeroes": options.detectZeroes = value
        case "allocation-depth": options.showsAllocationDepth = true
        case "bitmap": options.bitmaps.append(value)
        case "shared": options.connectionLimit = value
        case "format": options.format = value
        case "snapshot": options.usesTemporaryOverlay = true
        case "load-snapshot": options.loadSnapshot = value
        case "allow-path": options.allowedPaths.append(value)
        case "probe-backing": options.probesBackingFormat = true
        case "persistent": options.isPersistent = true
        case "verbose": options.isVerbose = true
        case "export-name": options.exportName = value
        case "description": options.description = value
        case "image-opts": options.takesImageOptions = true
        case "trace": options.traces.append(value)
        case "fork": options.forks = true
        case "pid-file": options.pidFile = value
        case "object": options.objects.append(value)
        case "tls-creds": options.tlsCredentials = value
        case "tls-authz": options.tlsAuthorization = value
        case "tls-hostname": options.tlsHostname = value
        case "handshake-limit": options.handshakeLimit = value
        default: throw .usage(refused(name).message)
        }
    }

    private static func refused(_ name: String) -> UnsupportedOption {
        switch name {
        case "connect": .connect
        case "disconnect": .disconnect
        default: .selinuxLabel
        }
    }

    /// Which server `-L` asks: a Unix socket, or TCP; this host unless told otherwise.
    private static func address(_ options: ServeOptions) throws(ToolError) -> NBDURI.Address {
        if let path = options.sockets.last {
            guard path.hasPrefix("/") else { throw .usage("socket path must be absolute") }
            return .unix(path: try ServePlan.checked(path: path))
        }
        let port = try options.port.map { text throws(ToolError) in try ServePlan.port(text) } ?? ServePlan.defaultPort
        guard let port = UInt16(exactly: port), port > 0 else { throw .usage("no server listens on port 0") }
        return .tcp(host: options.binds.last ?? "127.0.0.1", port: port)
    }
}
