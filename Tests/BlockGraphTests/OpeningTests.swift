import Block
import BlockDrivers
import BlockGraph
import Testing

private let drivers: Drivers = {
    var drivers = Drivers()
    drivers.register("memory") { options, opening throws(GraphError) in
        let size = try options.takeSize("size") ?? 1 << 20
        return Drivers.Opened(MemoryDevice(byteCount: size, isReadOnly: opening.isReadOnly))
    }
    drivers.register("raw") { options, opening throws(GraphError) in
        let offset = try options.takeSize("offset") ?? 0
        guard let file = try await opening.child("file", of: &options) else { throw GraphError(.invalid, "driver 'raw' needs file") }
        do throws(BlockError) {
            return Drivers.Opened(try RawWindow(file.device, offset: offset), edges: [Node.Edge(.filtered, file, offset: offset)])
        } catch {
            throw GraphError(.cannotOpen, error.detail)
        }
    }
    return drivers
}()

private func options(_ text: String) throws -> NodeOptions {
    try NodeOptions(
        text.split(separator: ",").map { field in
            let parts = field.split(separator: "=", maxSplits: 1)
            return (key: String(parts[0]), value: parts.count > 1 ? String(parts[1]) : "")
        })
}

@Suite struct `A chain of nodes` {
    @Test func `is opened from nested keys`() async throws {
        let graph = Graph()
        let node = try await graph.open(
            options("driver=raw,node-name=top,offset=64k,file.driver=raw,file.offset=1k,file.file.driver=memory,file.file.size=1M"), drivers)
        #expect(node.name == "top")
        #expect(node.device.info.byteCount == (1 << 20) - 65 * 1024)
        #expect(graph.nodes.map(\.driver) == ["memory", "raw", "raw"])
        try await graph.remove("top")
        #expect(graph.nodes.isEmpty)
    }

    @Test func `stands on nodes that exist, and inherits what is not said`() async throws {
        let graph = Graph()
        try await graph.open(options("driver=memory,node-name=base,size=1M"), drivers)
        let top = try await graph.open(options("driver=raw,file=base"), drivers)
        #expect(top.edges.map(\.node.name) == ["base"])
        let readOnly = try await graph.open(options("driver=raw,read-only=on,file.driver=memory"), drivers)
        #expect(readOnly.isReadOnly)
    }

    @Test(arguments: [
        ("node-name=x", "driver= is missing"), ("driver=tape", "no driver 'tape'"), ("driver=memory,speed=9", "no key 'speed'"),
        ("driver=raw,file.driver=memory,file.speed=9", "no key 'file.speed'"), ("driver=raw,file.size=1", "file.driver= is missing"),
        ("driver=raw,file=nobody", "no such node"), ("driver=raw,file=a,file.driver=memory", "names a node"),
        ("driver=memory,size=1X", "size=1X"), ("driver=memory,size=9E", "size=9E"), ("driver=memory,read-only=maybe", "neither on nor off"),
        ("driver=raw,offset=2M,file.driver=memory", "do not fit"), ("driver=memory,node-name=a b", "no name"), ("driver=memory,size=", "size="),
        (".driver=memory", "no key"), ("driver=memory,driver=raw", "twice"), ("driver=raw", "needs file"),
    ])
    func `that makes no sense is refused, and leaves nothing open`(text: String, message: String) async throws {
        let graph = Graph()
        try await graph.open(options("driver=memory,node-name=kept"), drivers)
        await #expect { try await graph.open(options(text), drivers) } throws: { "\($0)".contains(message) }
        #expect(graph.nodes.map(\.name) == ["kept"])
    }

    @Test func `is only so deep`() async throws {
        let text = (0..<300).map { String(repeating: "file.", count: $0) + "driver=raw" }.joined(separator: ",")
        await #expect(throws: GraphError.self) { try await Graph().open(options(text), drivers) }
    }
}
