import Block
import BlockDrivers
import BlockGraph
import QCOW2
import Testing

@testable import NBDTool

/// Opens nodes as `--blockdev` and `--image-opts` describe them.
private func open(_ text: String, in graph: Graph, _ rules: ImageRules = ImageRules(), readOnly: Bool = false) async throws -> Node {
    let options = try NodeOptions(try KeyValueList(text, context: "test").pairs)
    return try await graph.open(options, ToolDrivers.all(RawOptions(), rules), isReadOnly: readOnly)
}

@Suite struct `The driver qcow2` {
    @Test func `follows the names in the image when nothing else is said`() async throws {
        let scratch = Scratch()
        try await scratch.raw("base", 7)
        let top = try await scratch.image("top", over: "base", "raw", data: ("data", "data"))
        let graph = Graph()
        let node = try await open("driver=qcow2,node-name=disk,file.filename=\(top)", in: graph)
        #expect(node.edges.map(\.role) == [.file, .dataFile, .backing])
        try await node.face.fill(9, at: 0)
        #expect(try await node.face.byte(at: 0) == 9)
        #expect(try await node.face.byte(at: 4096) == 7)
        // Taken out with all that was opened for it.
        try await graph.remove("disk")
        #expect(graph.nodes.isEmpty)
        for name in ["top", "base", "data"] { await (try RawFile.open(scratch[name])).close() }
    }

    @Test func `stands on the nodes that are given instead`() async throws {
        let scratch = Scratch()
        try await scratch.raw("base", 7)
        try await scratch.raw("other", 8)
        let top = try await scratch.image("top", over: "base", "raw", data: ("data", "data"))
        try await scratch.raw("more", byteCount: 0)
        let graph = Graph()
        _ = try await open("driver=file,node-name=image,filename=\(top)", in: graph)
        _ = try await open("driver=file,node-name=below,filename=\(scratch["other"]),read-only=on", in: graph)
        _ = try await open("driver=file,node-name=aside,filename=\(scratch["more"])", in: graph)
        let node = try await open("driver=qcow2,node-name=top,file=image,backing=below,data-file=aside", in: graph)
        #expect(node.edges.map(\.node.name) == ["image", "aside", "below"])
        #expect(try await node.face.byte(at: 0) == 8)
        try await node.face.fill(1, at: 0)
        #expect(try await node.face.byte(at: 0) == 1)
        await graph.close()
        let more = try await RawFile.open(scratch["more"])
        #expect(try await more.byte(at: 0) == 1)
        await more.close()
    }

    @Test func `describes what lies below in place, read-only`() async throws {
        let scratch = Scratch()
        try await scratch.raw("base", 7)
        let middle = try await scratch.image("middle", over: "base", "raw")
        // Even below an image that names nothing.
        let top = try await scratch.image("top")
        let graph = Graph()
        let node = try await open("driver=qcow2,file.driver=file,file.filename=\(top),backing.driver=qcow2,backing.file.filename=\(middle)", in: graph)
        #expect(try await node.face.byte(at: 0) == 7)
        #expect(node.edges.last?.node.isReadOnly == true)
        try await node.face.fill(1, at: 0)
        await graph.close()
        let image = try await open("driver=qcow2,file.filename=\(middle)", in: Graph())
        #expect(try await image.face.byte(at: 0) == 7)
    }

    @Test func `has nothing below when backing is empty`() async throws {
        let scratch = Scratch()
        let top = try await scratch.image("top", over: "missing", "raw")
        let node = try await open("driver=qcow2,file.filename=\(top),backing=", in: Graph())
        #expect(node.edges.map(\.role) == [.file])
        #expect(try await node.face.byte(at: 0) == 0)
    }

    @Test(arguments: [
        ("driver=qcow2", "driver 'qcow2' needs file=NODE or file.driver="),
        ("driver=qcow2,file.filename=TOP,l2-cache-size=1M", "driver 'qcow2' has no key 'l2-cache-size'"),
        ("driver=qcow2,file.filename=TOP,file.size=1", "driver 'file' has no key 'file.size'"),
        ("driver=qcow2,file.filename=TOP,backing.file.filename=TOP", "backing.driver= is missing"),
        ("driver=qcow2,file.filename=TOP,backing=nobody", "backing=nobody: there is no such node"),
        ("driver=qcow2,file.filename=TOP,backing=memory,backing.driver=memory", "names a node"),
        ("driver=qcow2,file.filename=TOP,data-file=memory", "has no external data file"),
        ("driver=qcow2,file.filename=TOP,discard=maybe", "Invalid discard mode"),
        ("driver=qcow2,file.filename=TOP,discard=ignore,detect-zeroes=unmap", "detect-zeroes=unmap needs discard=unmap"),
        ("driver=qcow2,file=memory", "node 'memory'"),
        ("driver=qcow2,file.filename=TOP,backing.driver=qcow2,backing.file.filename=OUT", "does not lie beside the image"),
        ("driver=qcow2,file.filename=OUT", "does not lie beside the image"),
        ("driver=qcow2,file.driver=raw,file.file.filename=OVER", "backing= is needed"),
    ])
    func `is refused with a reason, and leaves nothing open`(text: String, message: String) async throws {
        let scratch = Scratch()
        for name in ["images", "elsewhere"] { scratch.directory(name) }
        let top = try await scratch.image("images/top")
        try await scratch.raw("elsewhere/base")
        let out = try await scratch.image("images/out", over: "../elsewhere/base", "raw")
        let over = try await scratch.image("images/over", over: "top", "qcow2")
        let graph = Graph()
        _ = try await open("driver=memory,node-name=memory,size=1M", in: graph)
        let filled = text.replacing("TOP", with: top).replacing("OUT", with: out).replacing("OVER", with: over)
        await #expect { _ = try await open(filled, in: graph) } throws: { "\($0)".contains(message) }
        #expect(graph.nodes.map(\.name) == ["memory"])
        for path in [top, out, over] { await (try RawFile.open(path)).close() }
    }

    @Test func `keeps others from the file of the image`() async throws {
        let scratch = Scratch()
        let top = try await scratch.image("top")
        let graph = Graph()
        _ = try await open("driver=file,node-name=image,filename=\(top)", in: graph)
        _ = try await open("driver=qcow2,node-name=disk,file=image", in: graph)
        await #expect(throws: GraphError.self) { _ = try await open("driver=raw,file=image", in: graph) }
    }
}

@Suite struct `A bitmap of an image` {
    @Test(arguments: ["", ",detect-zeroes=on", ",detect-zeroes=unmap,discard=unmap"])
    func `is found from the top of a chain, and through filters`(keys: String) async throws {
        let scratch = Scratch()
        try await scratch.image("base", bitmap: "below")
        let top = try await scratch.image("top", over: "base", "qcow2", bitmap: "above")
        let graph = Graph()
        let node = try await open("driver=qcow2,file.filename=\(top)" + keys, in: graph)
        #expect(try node.findBitmap("above").node === node)
        #expect(try node.findBitmap("below").node === node.edges.last?.node)
        #expect(try node.findBitmap("below").bitmap.isReadOnly)
        #expect(throws: BitmapError.self) { try node.findBitmap("beside") }
        // Zeroes, too, are recorded.
        try await node.face.fill(0, at: 65536)
        #expect(try node.findBitmap("above").bitmap.dirtyByteCount == 65536)
        #expect(try node.findBitmap("below").bitmap.dirtyByteCount == 0)
        await graph.close()
    }
}
