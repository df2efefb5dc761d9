import Logging
import NBDProtocol

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// From options to an exit code: what both front ends call.
enum Serve {
    /// Serves until the end, or sends a server to the background. Failures become one line on standard error.
    static func run(_ options: ServeOptions, configurationPath: String? = nil) async -> Int32 {
        let program = options.style == .qemuNBD ? "qemu-nbd" : "nbd"
        do throws(ToolError) {
            return try await start(options, configurationPath, program)
        } catch {
            report(error.message, program: program)
            // qemu-nbd knows one exit code for all failures.
            return options.style == .qemuNBD ? 1 : error.exitCode
        }
    }

    static func report(_ message: String, program: String) {
        HostProcess.write(Array("\(program): \(message.sanitized(limit: 6000))\n".utf8), to: 2)
    }

    private static func start(_ options: ServeOptions, _ configurationPath: String?, _ program: String) async throws(ToolError) -> Int32 {
        let detachment = Detachment.adopt()
        var configuration: Configuration?
        if let path = configurationPath {
            configuration = try Configuration(contents: HostProcess.contents(of: path, limit: Configuration.byteLimit), path: path)
        }
        if options.forks && detachment == nil {
            // Checked here too, so that nothing is started for a command line that is wrong.
            _ = try ServePlan(options, configuration: configuration, activated: SocketActivation.current().sockets.map(\.name))
            return try Detachment.startChild()
        }
        let activation = try SocketActivation.adopt(alternativeID: detachment == nil ? nil : getppid())
        var plan = try ServePlan(options, configuration: configuration, activated: activation.sockets.map(\.name))
        try plan.trace.load { path throws(ToolError) in try HostProcess.contents(of: path, limit: TracePlan.byteLimit) }
        let logger = Logger(label: program) { _ in ToolLogHandler(program: program, isVerbose: plan.isVerbose) }
        for warning in plan.trace.warnings + plan.access.warnings(exports: plan.exports.map(\.name)) { logger.warning("\(warning)") }
        let runner = ServeRunner(
            plan: plan, style: options.style, activation: activation, notifier: ServiceNotifier.adopt(), detachment: detachment,
            logger: logger)
        return try await runner.run()
    }
}
