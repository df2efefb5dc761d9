import Block
import BlockGraph
import Logging
import NBDProtocol
import NBDServer

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Carries out a plan: opens, listens, tells everybody who waits, serves, and clears up.
///
/// What is promised (docs/serve.md, "Readiness"): nobody is told that the server is ready before every image is open and every address
/// bound; what fails until then is one line and a non-zero exit.
struct ServeRunner {
    let plan: ServePlan
    let style: ServeOptions.Style
    let activation: SocketActivation
    let notifier: ServiceNotifier
    let detachment: Detachment?
    let logger: Logger

    /// - Returns: The exit code: 0, or that of the command of `--run`.
    func run() async throws(ToolError) -> Int32 {
        // Before anything is opened here that might get the same number.
        if let descriptor = plan.readyDescriptor, !HostProcess.isOpen(descriptor) {
            throw .usage("--ready-fd \(descriptor): not an open descriptor")
        }
        let files = OwnedFiles()
        defer { files.removeAll() }
        let stopper = Stopper(files: files, logger: logger) { [notifier] in notifier.stopping() }
        try stopper.listen(hangupStops: plan.hangupStops)
        if plan.exitsWithParent { stopper.watchParent() }

        let encryption = try plan.tls.map { tls throws(ToolError) in try Encryption(tls, logger: logger) }
        let privileges = try Privileges(user: plan.access.user, group: plan.access.group)
        let graph = Graph()
        for device in plan.blockDevices { try await device.open(in: graph, logger: logger) }
        var exports: [OpenedExport] = []
        for export in plan.exports {
            exports.append(try await ImageOpener.open(export, in: graph, expectsProbing: style == .qemuNBD, logger: logger))
        }
        let listeners = try makeListeners(files)
        let server: NBDServer
        do {
            var configuration = try configuration(listeners, encryption)
            let paths = listeners.map(\.address).compactMap { if case .unix(let path) = $0, path.utf8.first != 0 { path } else { nil } }
            configuration.willAccept = { uris in
                for path in paths { files.adopt(path) }
                try settle(uris, files, stopper, privileges)
            }
            server = try NBDServer(exports: exports.map(\.export), configuration: configuration, logger: logger)
            for export in exports { try export.attach(server, in: graph) }
            try await server.start()
        } catch {
            _ = await stopper.childExitCode()
            throw (error as? ToolError) ?? .runtime("\(error)")
        }
        announce(server)
        if let encryption { stopper.adopt(reload: { encryption.reload() }) }
        let watch = encryption?.authorization.map { gate in Task { await gate.watch() } }
        let trimming = Task { await IdleMemory.watch(server) }
        defer {
            watch?.cancel()
            trimming.cancel()
        }
        stopper.adopt(server)
        do {
            try await server.run()
        } catch {
            throw .runtime("\(error)")
        }
        await graph.close()
        return await stopper.childExitCode() ?? 0
    }

    /// Takes away stale socket files, finds names for private sockets.
    private func makeListeners(_ files: OwnedFiles) throws(ToolError) -> [Listener] {
        var listeners: [Listener] = []
        for planned in plan.listeners {
            var addresses: [Listener.Address] = []
            switch planned.place {
            case .tcp(let host, let port): addresses = [.tcp(host: host, port: port)]
            case .loopback(let port):
                addresses = [.tcp(host: "127.0.0.1", port: port)]
                if HostProcess.hasLoopbackIPv6 { addresses.append(.tcp(host: "::1", port: port)) }
            case .unix(let path):
                if path.utf8.first != 0 { try OwnedFiles.clearStaleSocket(path) }
                addresses = [.unix(path: path)]
            case .privateSocket: addresses = [.unix(path: try files.makePrivateSocketPath())]
            case .activated(let name):
                let descriptors = activation.sockets.filter { $0.name == name }.map(\.descriptor)
                logger.info("taking over sockets", metadata: ["name": "\(name)", "descriptors": "\(descriptors)"])
                addresses = descriptors.map { .inherited(descriptor: $0) }
            case .standardInput:
                guard HostProcess.socketKind(0).isSocket else { throw .runtime("--single: standard input is not a socket") }
                addresses = [.connected(descriptor: try HostProcess.duplicate(0))]
            }
            for address in addresses {
                listeners.append(Listener(address, oldstyleExport: planned.oldstyleExport, isListable: planned.isListable))
            }
        }
        return listeners
    }

    private func configuration(_ listeners: [Listener], _ encryption: Encryption?) throws(ToolError) -> NBDServer.Configuration {
        var configuration = plan.server
        configuration.listeners = listeners
        configuration.tls = encryption?.configuration
        configuration.authorizer = plan.access.authorizer(encryption?.authorization)
        if plan.trace.isOn {
            let writer = try TraceWriter(plan.trace)
            configuration.tracer = { writer.write($0, $1) }
        }
        return configuration
    }

    /// All images are open and all addresses bound: whoever connects now is served in a moment. Writes the pid file and starts the command of
    /// `--run`, gives up every right that serving does not need, and then the files of this host.
    ///
    /// In this order: the pid file may be where only root can write; the command is run by the user that the server is, or nobody could end
    /// it, and is not confined.
    private func settle(_ uris: [String], _ files: OwnedFiles, _ stopper: Stopper, _ privileges: Privileges?) throws(ToolError) {
        if let path = plan.pidFile { try files.writePIDFile(path) }
        try privileges?.take()
        if let command = plan.runCommand { stopper.adopt(child: try start(command, uri: uris.first ?? "")) }
        var sandbox = Sandbox()
        sandbox.owned = files.places
        sandbox.watched = plan.watchedFiles
        sandbox.keepsSignals = plan.runCommand != nil || notifier.isAbstract
        _ = try sandbox.enter(plan.access.sandbox, logger: logger)
    }

    /// From here on clients are served: says so to everybody who asked.
    private func announce(_ server: NBDServer) {
        let uris = server.uris
        if plan.printsURI { HostProcess.write(Array(uris.map { $0 + "\n" }.joined().utf8), to: 1) }
        if let descriptor = plan.readyDescriptor {
            HostProcess.write(Array("READY\n".utf8), to: descriptor)
            if descriptor > 2 { close(descriptor) }
        }
        let count = plan.exports.count
        notifier.ready("Serving \(count) export\(count == 1 ? "" : "s"): \(uris.first ?? "one client")")
        detachment?.release(keepsError: plan.isVerbose || plan.trace.isOn && plan.trace.file == nil)
        logger.info("serving", metadata: ["exports": "\(count)", "uris": "\(uris.joined(separator: " "))"])
    }

    private func start(_ command: String, uri: String) throws(ToolError) -> pid_t {
        try Spawn.shell(RunScript(uri: uri, exportName: plan.exports[0].name, command: command).text)
    }
}
