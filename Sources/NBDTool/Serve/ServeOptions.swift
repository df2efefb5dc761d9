/// What was typed, unchecked: the one model behind both front ends, `nbd serve` (`ServeCommand`) and the `qemu-nbd` personality
/// (`QEMUNBDOptions`). `ServePlan` checks it.
struct ServeOptions: Equatable, Sendable {
    enum Style: Equatable, Sendable {
        case nbd
        case qemuNBD
    }

    var style: Style

    // What is served.
    /// The operands.
    var images: [String] = []
    /// Every `--blockdev`.
    var blockDevices: [String] = []
    /// Every `--export`.
    var exports: [String] = []
    var exportName: String?
    var description: String?
    var isReadOnly = false
    var offset: String?
    var size: String?
    var format: String?
    /// The operand is a set of image options, not a path.
    var takesImageOptions = false
    var cache: String?
    var discard: String?
    var detectZeroes: String?
    var aio: String?
    var showsAllocationDepth = false
    var bitmaps: [String] = []
    /// `NAME[:GRANULARITY]`.
    var tracks: [String] = []
    var defaultExport: String?
    /// `-l`: an internal snapshot instead of the current state.
    var loadSnapshot: String?
    /// `-s`: writes go to an overlay that is gone at exit.
    var usesTemporaryOverlay = false
    /// Where else backing and data files may lie.
    var allowedPaths: [String] = []
    /// Look what a backing file is when the image does not say.
    var probesBackingFormat = false

    // Where.
    var port: String?
    var binds: [String] = []
    var sockets: [String] = []
    var isSingle = false
    var oldstyleExport: String?
    var isListable = true

    // Encryption.
    /// Every `--object`.
    var objects: [String] = []
    var tlsCredentials: String?
    var tlsAuthorization: String?
    var tlsHostname: String?
    /// required, optional.
    var tlsMode: String?

    // Limits.
    /// `-e`, `--max-connections`.
    var connectionLimit: String?
    var peerConnectionLimit: String?
    var handshakeCountLimit: String?
    var peerHandshakeCountLimit: String?
    var requestLimit: String?
    var handshakeLimit: String?
    var memoryLimit: String?
    var connectionMemoryLimit: String?
    var stallLimit: String?
    var progressLimit: String?
    var peerSilenceLimit: String?
    var drainLimit: String?
    /// Microseconds.
    var poll: String?
    /// on, off.
    var fastPath: String?

    // Who may do what.
    /// Every `--allow`.
    var allows: [String] = []
    var denies: [String] = []
    var user: String?
    var group: String?
    /// on, off, require.
    var sandbox: String?

    // Life.
    /// Stay when the last client has left. nil: as usual for the style.
    var isPersistent: Bool?
    var runCommand: String?
    var exitsWithParent = false
    var forks = false
    var pidFile: String?
    var readyDescriptor: String?
    /// nil: yes, unless standard output belongs to somebody else (`--run`, `--single`, socket activation).
    var printsURI: Bool?

    // Watching.
    var isVerbose = false
    var traces: [String] = []

    init(style: Style) {
        self.style = style
    }
}
