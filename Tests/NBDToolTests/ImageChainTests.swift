import Block
import BlockDrivers
import BlockGraph
import QCOW2
import Testing

@testable import NBDTool

private let rules = ImageRules()

/// What opening says, and whether it leaves the image free for others.
private func refusal(of path: String, _ rules: ImageRules = rules, sourceLocation: SourceLocation = #_sourceLocation) async throws -> String {
    var message = "opened"
    do {
        try await ImageChain.open(path, .qcow2, rules, RawOptions()).close()
    } catch {
        message = error.message
    }
    await (try RawFile.open(path)).close()
    return message
}

@Suite struct `A chain of images` {
    @Test func `is opened from the top, each image with its data file`() async throws {
        let scratch = Scratch()
        try await scratch.raw("base", 7)
        try await scratch.image("middle", over: "base", "raw", data: ("middle.data", "middle.data"))
        let top = try await scratch.image("top", over: "middle", "qcow2")
        let chain = try await ImageChain.open(top, nil, rules, RawOptions())
        #expect(chain.images.map(\.path) == [top, scratch["middle"], scratch["base"]])
        #expect(chain.images.map(\.format) == [.qcow2, .qcow2, .raw])
        #expect(chain.images.map { $0.dataFile != nil } == [false, true, false])
        // Nobody writes to what others may stand on.
        #expect(chain.images.map(\.file.info.isReadOnly) == [false, true, true])

        let graph = Graph()
        let node = try await chain.add(to: graph)
        #expect(graph.nodes.map(\.driver) == ["file", "file", "file", "qcow2", "file", "qcow2"])
        #expect(try await node.face.byte(at: 65536) == 7)
        try await node.face.fill(9, at: 65536)
        #expect(try await node.face.byte(at: 65536) == 9)
        #expect(try await node.face.byte(at: 65536 + 4096) == 7)
        await graph.close()
        #expect(try await refusal(of: top) == "opened")
    }

    @Test func `only has files beside the image, or where the user allows it`() async throws {
        let scratch = Scratch()
        for name in ["images", "images/below", "elsewhere", "elsewhere/below"] { scratch.directory(name) }
        try await scratch.raw("images/beside")
        try await scratch.raw("images/below/base")
        try await scratch.raw("elsewhere/base")
        try await scratch.raw("elsewhere/below/base")
        scratch.link("images/link", to: scratch["elsewhere/base"])
        scratch.link("elsewhere/back", to: scratch["images/beside"])
        let elsewhere = scratch.path + "/elsewhere"
        for (name, isBeside) in [
            ("beside", true), (scratch["images/beside"], true), ("../images/./beside", true), ("../elsewhere/back", true), ("below/base", false),
            ("../elsewhere/base", false), (scratch["elsewhere/base"], false), ("link", false), (scratch["elsewhere/below/base"], false),
        ] {
            let image = try await scratch.image("images/image", over: name, "raw")
            let message = try await refusal(of: image)
            #expect(isBeside ? message == "opened" : message.contains("does not lie beside the image; --allow-path /"), "\(name): \(message)")
            guard !isBeside, name != "below/base" else { continue }
            #expect(try await refusal(of: image, ImageRules(allowed: [elsewhere])) == "opened", "\(name)")
            #expect(try await refusal(of: image, ImageRules(allowed: ["/nowhere", elsewhere + "/"])) == "opened", "\(name)")
            #expect(try await refusal(of: image, ImageRules(allowed: ["/"])) == "opened", "\(name)")
            // The name of a directory, not the beginning of one.
            #expect(try await refusal(of: image, ImageRules(allowed: [String(elsewhere.dropLast())])) != "opened", "\(name)")
        }
    }

    @Test func `takes a linked image for what is where the link leads`() async throws {
        let scratch = Scratch()
        for name in ["secret", "upload"] { scratch.directory(name) }
        try await scratch.raw("secret/key")
        try await scratch.image("upload/image", over: "key", "raw")
        scratch.link("secret/disk", to: scratch["upload/image"])
        #expect(try await refusal(of: scratch["secret/disk"]).contains("does not lie beside the image"))
    }

    @Test func `holds data files to the same rule`() async throws {
        let scratch = Scratch()
        for name in ["images", "elsewhere"] { scratch.directory(name) }
        let image = try await scratch.image("images/image", data: ("../elsewhere/data", "elsewhere/data"))
        let message = try await refusal(of: image)
        #expect(message.hasPrefix("Could not open the data file of '\(image)'") && message.contains("--allow-path \(scratch.path)/elsewhere allows it"))
        #expect(try await refusal(of: image, ImageRules(allowed: [scratch.path + "/elsewhere"])) == "opened")
    }

    @Test func `guesses no format unless it is told to, and then only those it knows`() async throws {
        let scratch = Scratch()
        let probing = ImageRules(probesFormat: true)
        try await scratch.raw("base", 3)
        try await scratch.image("middle")
        try await scratch.raw("foreign", 0)
        let foreign = try await RawFile.open(scratch["foreign"])
        try await foreign.write(at: 0, from: Array("KDMV".utf8).span.bytes, [])
        await foreign.close()
        for (name, format) in [("base", ImageFormat.raw), ("middle", .qcow2)] {
            let image = try await scratch.image("image", over: name)
            #expect(try await refusal(of: image).contains("--probe-backing was not given"))
            let chain = try await ImageChain.open(image, .qcow2, probing, RawOptions(isReadOnly: true))
            #expect(chain.images.map(\.format) == [.qcow2, format])
            await chain.close()
        }
        #expect(try await refusal(of: try await scratch.image("image", over: "foreign"), probing).contains("format vmdk is not supported"))
        #expect(try await refusal(of: try await scratch.image("image", over: "base", "vmdk")).contains("its format 'vmdk' is not supported"))
        #expect(try await refusal(of: try await scratch.image("image", over: "base", "host_device")) == "opened")
    }

    @Test(arguments: [
        ("nbd://host/x", "only files are supported"), ("json:{}", "only files are supported"), ("missing", "is not there"),
        ("a\u{0}b", "is not text"), ("file:base", "opened"),
    ])
    func `has no files of other names`(name: String, message: String) async throws {
        let scratch = Scratch()
        try await scratch.raw("base")
        #expect(try await refusal(of: try await scratch.image("image", over: name, "raw")).contains(message))
    }

    @Test func `may not lead back, to an image or a data file`() async throws {
        let scratch = Scratch()
        try await scratch.image("second")
        try await scratch.image("first", over: "second", "qcow2")
        try await scratch.image("second", over: "first", "qcow2")
        #expect(try await refusal(of: scratch["first"]).contains("leads back"))
        try await scratch.image("self", over: "self", "qcow2")
        #expect(try await refusal(of: scratch["self"]).contains("leads back"))
        let image = try await scratch.image("image", over: "data", "raw", data: ("data", "data"))
        #expect(try await refusal(of: image).contains("leads back"))
    }

    @Test func `has at most 200 images`() async throws {
        let scratch = Scratch()
        try await scratch.image("0", clusterByteCount: 512)
        for index in 1...200 { try await scratch.image("\(index)", over: "\(index - 1)", "qcow2", clusterByteCount: 512) }
        let chain = try await ImageChain.open(scratch["199"], .qcow2, rules, RawOptions(isReadOnly: true))
        #expect(chain.images.count == 200)
        let graph = Graph()
        #expect(try await chain.add(to: graph).face.byte(at: 0) == 0)
        await graph.close()
        #expect(try await refusal(of: scratch["200"]).contains("more than 200 images"))
    }

    @Test func `leaves nothing open when one of its images cannot be read`() async throws {
        let scratch = Scratch()
        let base = try await scratch.image("base")
        let top = try await scratch.image("top", over: "base", "qcow2")
        // Its L1 table lies nowhere.
        let file = try await RawFile.open(base)
        try await file.write(at: 40, from: [UInt8]([0, 0, 1, 0, 0, 0, 0, 0]).span.bytes, [])
        await file.close()
        let graph = Graph()
        let chain = try await ImageChain.open(top, .qcow2, rules, RawOptions())
        await #expect { try await chain.add(to: graph) } throws: { "\($0)".contains("Could not open '\(base)'") }
        #expect(graph.nodes.isEmpty)
        await (try RawFile.open(top)).close()
        await (try RawFile.open(base)).close()
    }

    @Test func `shows an internal snapshot of the image on top`() async throws {
        let scratch = Scratch()
        let top = try await scratch.image("top")
        let graph = Graph()
        let node = try await ImageChain.open(top, .qcow2, rules, RawOptions()).add(to: graph)
        try await node.face.fill(1, at: 0)
        await graph.close()
        let opened = try await OpenedImage.open(top, .qcow2, isReadOnly: false)
        _ = try await opened.image?.createSnapshot(Array("then".utf8), time: (0, 0))
        await opened.file.close()
        let later = Graph()
        try await ImageChain.open(top, .qcow2, rules, RawOptions()).add(to: later).face.fill(2, at: 0)
        await later.close()
        let past = Graph()
        let chain = try await ImageChain.open(top, .qcow2, rules, RawOptions(isReadOnly: true))
        #expect(try await chain.add(to: past, snapshot: SnapshotSelector(name: "then")).face.byte(at: 0) == 1)
        await past.close()
    }
}
