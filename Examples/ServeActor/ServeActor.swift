import Block
import Logging
import NBDServer
import ServiceLifecycle
import UnixSignals

/// A disk in the memory of an actor: what you store is yours to choose.
actor Scratch: BlockDevice {
    nonisolated let info = DeviceInfo(byteCount: 1 << 20)
    private var bytes = [UInt8](repeating: 0, count: 1 << 20)

    func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        for i in 0..<buffer.byteCount { buffer.storeBytes(of: bytes[Int(offset) + i], toByteOffset: i, as: UInt8.self) }
    }

    func write(at offset: UInt64, from source: RawSpan, _ options: WriteOptions) async throws(BlockError) {
        for i in 0..<source.byteCount { bytes[Int(offset) + i] = source[i] }
    }
}

@main struct ServeActor {
    static func main() async throws {
        let path = CommandLine.arguments.dropFirst().first ?? "/tmp/scratch.sock"
        let server = try NBDServer(
            exports: [Export(name: "scratch", device: Scratch())],
            configuration: .init(listeners: [Listener(.unix(path: path))]), logger: Logger(label: "scratch"))
        try await server.start()
        print(server.uris[0])
        try await ServiceGroup(
            services: [server], gracefulShutdownSignals: [.sigterm, .sigint], logger: Logger(label: "scratch")
        ).run()
    }
}
