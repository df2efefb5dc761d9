import ArgumentParser

/// `nbd serve`: the options as people type them. What they mean is decided in `ServePlan`.
struct ServeCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "serve",
        abstract: "Serve disk images to NBD clients.",
        discussion: """
            Listens on 127.0.0.1 and ::1, port 10809, unless told otherwise, prints where it can be reached when it is ready, and serves \
            until SIGTERM or SIGINT. Sizes take the suffixes K, M, G, T, P and E (powers of 1024).
            """)

    @Argument(help: ArgumentHelp("A file or host device, or memory:SIZE, null:SIZE, pattern:SIZE.", valueName: "image"))
    var images: [String] = []

    @OptionGroup(title: "What is served") var image: ImageOptions
    @OptionGroup(title: "Where") var place: PlaceOptions
    @OptionGroup(title: "Encryption") var tls: TLSOptions
    @OptionGroup(title: "Who may do what") var access: AccessOptions
    @OptionGroup(title: "Limits") var limit: LimitOptions
    @OptionGroup(title: "Life") var life: LifeOptions
    @OptionGroup(visibility: .hidden) var later: LaterOptions

    struct ImageOptions: ParsableArguments {
        @Option(name: .long, help: ArgumentHelp("Serve name=NAME,file=PATH[,key=value…]. Repeatable.", valueName: "keys"))
        var export: [String] = []

        @Option(
            name: .long,
            help: ArgumentHelp("Open a node for node= of --export: driver=…,node-name=NAME[,key=value…]. Repeatable.", valueName: "keys"))
        var blockdev: [String] = []

        @Option(name: .long, help: ArgumentHelp("Read exports, listeners and limits from a .toml or .json file.", valueName: "file"))
        var config: String?

        @Option(
            name: [.customShort("x", allowingJoined: true), .long],
            help: ArgumentHelp("Name of the export (default: empty).", valueName: "name"))
        var exportName: String?

        @Option(name: [.customShort("D", allowingJoined: true), .long], help: ArgumentHelp("Description for people.", valueName: "text"))
        var description: String?

        @Option(name: .long, help: ArgumentHelp("The export that clients get who ask for \"\".", valueName: "name"))
        var defaultExport: String?

        @Flag(name: .shortAndLong, help: "Clients may not write.")
        var readOnly = false

        @Option(
            name: [.customShort("o", allowingJoined: true), .long],
            help: ArgumentHelp("The export begins here in the image.", valueName: "size"))
        var offset: String?

        @Option(name: .long, help: ArgumentHelp("The export ends after so many bytes.", valueName: "size"))
        var size: String?

        @Option(name: [.customShort("f", allowingJoined: true), .long], help: ArgumentHelp("raw or qcow2.", valueName: "format"))
        var format: String?

        @Flag(name: .long, help: "The image is a set of QEMU's options: driver=raw,file.driver=file,file.filename=PATH,….")
        var imageOpts = false

        @Option(
            name: [.customShort("l", allowingJoined: true), .long],
            help: ArgumentHelp("Serve an internal snapshot, read-only: its id or name, or snapshot.id=ID,snapshot.name=NAME.", valueName: "snapshot"))
        var loadSnapshot: String?

        @Flag(name: .shortAndLong, help: "Writes go to a temporary overlay and are gone at exit.")
        var snapshot = false

        @Option(
            name: .long,
            help: ArgumentHelp("Backing and data files may also lie here. Repeatable. Default: only beside the image.", valueName: "directory"))
        var allowPath: [String] = []

        @Flag(name: .long, help: "Find out the format of a backing file when the image does not say it.")
        var probeBacking = false

        @Flag(name: [.customShort("n"), .long], help: "Same as --cache none.")
        var nocache = false

        @Option(name: .long, help: ArgumentHelp("none, writeback (default), writethrough, directsync or unsafe.", valueName: "mode"))
        var cache: String?

        @Option(name: .long, help: ArgumentHelp("unmap (default) or ignore.", valueName: "mode"))
        var discard: String?

        @Option(name: .long, help: ArgumentHelp("off (default), on or unmap.", valueName: "mode"))
        var detectZeroes: String?

        @Option(name: .long, help: ArgumentHelp("auto (default), threads, native or io_uring.", valueName: "mode"))
        var aio: String?

        @Flag(name: [.customShort("A"), .long], help: "Offer qemu:allocation-depth: in which image of its chain data lies.")
        var allocationDepth = false

        @Option(
            name: [.customShort("B", allowingJoined: true), .long],
            help: ArgumentHelp("Offer a dirty bitmap of the image as qemu:dirty-bitmap:NAME. Repeatable.", valueName: "name"))
        var bitmap: [String] = []

        @Option(
            name: .long,
            help: ArgumentHelp("Record writes in a dirty bitmap in memory, and offer it. Repeatable.", valueName: "name[:granularity]"))
        var track: [String] = []
    }

    struct PlaceOptions: ParsableArguments {
        @Option(
            name: [.customShort("p", allowingJoined: true), .long],
            help: ArgumentHelp("TCP port (default: 10809; 0: any free one).", valueName: "port"))
        var port: String?

        @Option(
            name: [.customShort("b", allowingJoined: true), .long],
            help: ArgumentHelp("Address or host name to listen on. Repeatable.", valueName: "host"))
        var bind: [String] = []

        @Option(
            name: [.customShort("k", allowingJoined: true), .customShort("U", allowingJoined: true), .long],
            help: ArgumentHelp("Unix socket to listen on; @NAME: abstract; -: a private one. Repeatable.", valueName: "path"))
        var socket: [String] = []

        @Flag(name: .long, help: "Serve one client on standard input.")
        var single = false

        @Option(name: .long, help: ArgumentHelp("Speak the oldstyle protocol and serve this export.", valueName: "name"))
        var oldstyle: String?

        @Flag(name: .long, help: "Do not tell clients the names of the exports.")
        var noList = false
    }

    struct TLSOptions: ParsableArguments {
        @Option(
            name: .long,
            help: ArgumentHelp(
                "TLS credentials: tls-creds-x509,id=ID,dir=DIR,endpoint=server[,verify-peer=off], tls-creds-psk,id=ID,dir=DIR,endpoint=server. Repeatable.",
                valueName: "keys"))
        var object: [String] = []

        @Option(name: .long, help: ArgumentHelp("Encrypt with the credentials of this object.", valueName: "id"))
        var tlsCreds: String?

        @Option(name: .long, help: ArgumentHelp("Let in whom this object knows.", valueName: "id"))
        var tlsAuthz: String?

        @Option(name: .long, help: ArgumentHelp("required (default) or optional: serve in clear what is not marked tls=required.", valueName: "mode"))
        var tls: String?
    }

    struct LimitOptions: ParsableArguments {
        @Option(
            name: [.customShort("e", allowingJoined: true), .customLong("shared"), .customLong("max-connections")],
            help: ArgumentHelp("Clients at a time (default: 100; 0: no limit).", valueName: "count"))
        var shared: String?

        @Option(
            name: .long,
            help: ArgumentHelp(
                "The same for one address or user (default: three quarters of them if they are more than 32; 0: no limit).", valueName: "count"))
        var maxConnectionsPerPeer: String?

        @Option(name: .long, help: ArgumentHelp("Unfinished handshakes; one more cuts the oldest (default: 64; 0: no limit).", valueName: "count"))
        var maxHandshakes: String?

        @Option(name: .long, help: ArgumentHelp("The same for one address or user (default: 32; 0: no limit).", valueName: "count"))
        var maxHandshakesPerPeer: String?

        @Option(name: .long, help: ArgumentHelp("Requests in flight for one client (default: 16).", valueName: "count"))
        var requests: String?

        @Option(name: .long, help: ArgumentHelp("Seconds for the handshake (default: 10; 0: no limit).", valueName: "seconds"))
        var handshakeLimit: String?

        @Option(
            name: .long,
            help: ArgumentHelp("Seconds for a client that holds memory others wait for (default: 10; 0: no limit).", valueName: "seconds"))
        var stallLimit: String?

        @Option(
            name: .long,
            help: ArgumentHelp("Seconds without progress in the middle of a message (default: 120; 0: no limit).", valueName: "seconds"))
        var progressLimit: String?

        @Option(
            name: .long,
            help: ArgumentHelp("Seconds until a silent TCP peer is taken to be gone (default: 120; 0: never).", valueName: "seconds"))
        var peerSilenceLimit: String?

        @Option(name: .long, help: ArgumentHelp("Memory for requests and replies of all clients (default: 1G).", valueName: "size"))
        var memoryLimit: String?

        @Option(name: .long, help: ArgumentHelp("The same for one client (default: 64M, or less with --memory-limit).", valueName: "size"))
        var connectionMemoryLimit: String?

        @Option(name: .long, help: ArgumentHelp("Seconds for requests in flight when stopping (default: 10).", valueName: "seconds"))
        var drainLimit: String?

        @Option(name: .long, help: ArgumentHelp("Microseconds to look for the next request before sleeping, while requests come fast (default: 200; 0: sleep at once).", valueName: "microseconds"))
        var poll: String?

        @Option(name: .long, help: ArgumentHelp("on (default) or off: serve plain connections by loops made for speed; off is for diagnosis.", valueName: "mode"))
        var fastPath: String?
    }

    struct LifeOptions: ParsableArguments {
        @Flag(name: [.customShort("t"), .long], help: "Stay when the last client leaves (default).")
        var persistent = false

        @Flag(name: .long, help: "End when the last client leaves.")
        var once = false

        @Option(name: .long, help: ArgumentHelp("Run a shell command with $uri and end with it.", valueName: "command"))
        var run: String?

        @Flag(name: .long, help: "End when the parent process ends.")
        var exitWithParent = false

        @Flag(name: .long, help: "Go to the background when ready.")
        var fork = false

        @Option(name: .long, help: ArgumentHelp("Write the process id to a file when ready.", valueName: "file"))
        var pidFile: String?

        @Option(name: .long, help: ArgumentHelp("Write a line to this descriptor when ready.", valueName: "number"))
        var readyFd: String?

        @Flag(name: .long, inversion: .prefixedNo, help: "Print the URI of every export when ready.")
        var printURI: Bool?

        @Flag(name: .shortAndLong, help: "Log more; with --fork, keep standard error.")
        var verbose = false

        @Option(
            name: [.customShort("T", allowingJoined: true), .long],
            help: ArgumentHelp("Trace events: [enable=]GLOB[,events=FILE][,file=PATH], or help. Repeatable.", valueName: "what"))
        var trace: [String] = []
    }

    func run() async throws {
        if life.trace.contains(where: TracePlan.asksForNames) {
            HostProcess.write(Array(TracePlan.names.utf8), to: 1)
            return
        }
        try later.refuse()
        if image.nocache && image.cache != nil { throw ValidationError("-n and --cache can only be specified once") }
        if life.persistent && life.once { throw ValidationError("--persistent and --once are mutually exclusive") }
        let code = await Serve.run(options, configurationPath: image.config)
        if code != 0 { throw ExitCode(code) }
    }

    var options: ServeOptions {
        var options = ServeOptions(style: .nbd)
        options.images = images
        options.blockDevices = image.blockdev
        options.exports = image.export
        options.exportName = image.exportName
        options.description = image.description
        options.defaultExport = image.defaultExport
        options.isReadOnly = image.readOnly
        options.offset = image.offset
        options.size = image.size
        options.format = image.format
        options.takesImageOptions = image.imageOpts
        options.loadSnapshot = image.loadSnapshot
        options.usesTemporaryOverlay = image.snapshot
        options.allowedPaths = image.allowPath
        options.probesBackingFormat = image.probeBacking
        options.cache = image.nocache ? "none" : image.cache
        options.discard = image.discard
        options.detectZeroes = image.detectZeroes
        options.aio = image.aio
        options.showsAllocationDepth = image.allocationDepth
        options.bitmaps = image.bitmap
        options.tracks = image.track
        options.port = place.port
        options.binds = place.bind
        options.sockets = place.socket
        options.isSingle = place.single
        options.oldstyleExport = place.oldstyle
        options.isListable = !place.noList
        options.objects = tls.object
        options.tlsCredentials = tls.tlsCreds
        options.tlsAuthorization = tls.tlsAuthz
        options.tlsHostname = later.tlsHostname
        options.tlsMode = tls.tls
        options.connectionLimit = limit.shared
        options.peerConnectionLimit = limit.maxConnectionsPerPeer
        options.handshakeCountLimit = limit.maxHandshakes
        options.peerHandshakeCountLimit = limit.maxHandshakesPerPeer
        options.stallLimit = limit.stallLimit
        options.progressLimit = limit.progressLimit
        options.peerSilenceLimit = limit.peerSilenceLimit
        options.allows = access.allow
        options.denies = access.deny
        options.user = access.user
        options.group = access.group
        options.sandbox = access.sandbox
        options.requestLimit = limit.requests
        options.handshakeLimit = limit.handshakeLimit
        options.memoryLimit = limit.memoryLimit
        options.connectionMemoryLimit = limit.connectionMemoryLimit
        options.drainLimit = limit.drainLimit
        options.poll = limit.poll
        options.fastPath = limit.fastPath
        options.isPersistent = !life.once
        options.runCommand = life.run
        options.exitsWithParent = life.exitWithParent
        options.forks = life.fork
        options.pidFile = life.pidFile
        options.readyDescriptor = life.readyFd
        options.printsURI = life.printURI
        options.isVerbose = life.verbose
        options.traces = life.trace
        return options
    }
}

/// Options that qemu-nbd has and `nbd serve` has not yet: known, so that the answer is better than "unknown option".
struct LaterOptions: ParsableArguments {
    @Option(name: .long) var tlsHostname: String?
    @Option(name: [.customShort("c", allowingJoined: true), .long]) var connect: String?
    @Flag(name: .shortAndLong) var disconnect = false
    @Option(name: .long) var selinuxLabel: String?

    /// - Throws: `ValidationError` for the first that was given.
    func refuse() throws {
        let given: [(UnsupportedOption, Bool)] = [
            (.connect, connect != nil), (.disconnect, disconnect),
            (.selinuxLabel, selinuxLabel != nil),
        ]
        for (option, isGiven) in given where isGiven { throw ValidationError(option.message) }
    }
}
