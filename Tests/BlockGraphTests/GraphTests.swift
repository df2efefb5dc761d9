import Block
import BlockDrivers
import BlockGraph
import Synchronization
import Testing

private func disk(_ byteCount: UInt64 = 1 << 20, isReadOnly: Bool = false) -> MemoryDevice {
    MemoryDevice(byteCount: byteCount, isReadOnly: isReadOnly)
}

/// Notes when it is paused and resumed.
private final class Source: RequestSource {
    let diary = Mutex<[String]>([])
    func pause() async { diary.withLock { $0.append("pause") } }
    func resume() { diary.withLock { $0.append("resume") } }
    var entries: [String] { diary.withLock { $0 } }
}

@Suite struct `The graph` {
    // S-BLK-15, S-EXP-18
    @Test func `lets nobody resize what is exported, and names both`() throws {
        let graph = Graph()
        let node = try graph.add("disk", driver: "memory", disk())
        let first = try graph.attach(.export("a", isReadOnly: false), to: node)
        let second = try graph.attach(.export("b", isReadOnly: false), to: node)
        let resize = NodeUse("job 'grow'", own: .resize, shared: .all)
        #expect { try graph.attach(resize, to: node) } throws: { error in
            guard let error = error as? GraphError else { return false }
            return error.reason == .conflict && error.description == "node 'disk': job 'grow' wants resize, which export 'a' does not share"
        }
        first.detach()
        second.detach()
        let grow = try graph.attach(resize, to: node)
        #expect(throws: GraphError.self) { try graph.attach(.export("a", isReadOnly: true), to: node) }
        grow.detach()
    }

    // S-BLK-15
    @Test func `lets nobody write below a format`() throws {
        let graph = Graph()
        let base = try graph.add("base", driver: "memory", disk())
        let file = try graph.add("file", driver: "memory", disk())
        try graph.add("overlay", driver: "qcow2", disk(), edges: [Node.Edge(.file, file), Node.Edge(.backing, base)])
        for node in [base, file] {
            #expect { try graph.attach(.export("x", isReadOnly: false), to: node) } throws: {
                ($0 as? GraphError)?.description.contains("node 'overlay' as its") == true
            }
        }
        _ = try graph.attach(.export("x", isReadOnly: true), to: base)
        // A second image on the same file, and the first one's file exported for writing.
        #expect(throws: GraphError.self) { try graph.add("again", driver: "qcow2", disk(), edges: [Node.Edge(.file, file)]) }
        #expect(graph.node("again") == nil, "what failed leaves nothing behind")
        #expect(base.users.count == 2)
    }

    @Test(arguments: ["", "1st", "a b", "a/b", String(repeating: "n", count: 32), "#block000", "é"])
    func `takes no impossible name`(name: String) {
        #expect { try Graph().add(name, driver: "memory", disk()) } throws: { ($0 as? GraphError)?.reason == .invalid }
    }

    @Test func `names nodes that have no name, and takes no name twice`() throws {
        let graph = Graph()
        #expect(try graph.add(driver: "memory", disk()).name == "#block000")
        #expect(try graph.add(driver: "memory", disk()).name == "#block001")
        try graph.add("disk", driver: "memory", disk())
        #expect(throws: GraphError.self) { try graph.add("disk", driver: "memory", disk()) }
        #expect(graph.nodes.map(\.name) == ["#block000", "#block001", "disk"])
    }

    @Test func `removes a node that nobody uses, and what was opened for it`() async throws {
        let graph = Graph()
        let file = try graph.add(driver: "file", disk())
        let named = try graph.add("base", driver: "memory", disk())
        let top = try graph.add("top", driver: "qcow2", disk(), edges: [Node.Edge(.file, file), Node.Edge(.backing, named)])
        let use = try graph.attach(.export("disk", isReadOnly: false), to: top)
        await #expect { try await graph.remove("top") } throws: { "\($0)".contains("export 'disk'") }
        await #expect { try await graph.remove("base") } throws: { ($0 as? GraphError)?.reason == .inUse }
        use.detach()
        try await graph.remove("top")
        #expect(graph.nodes.map(\.name) == ["base"])
        #expect(named.users.isEmpty)
    }

    // S-DRN-01, S-DRN-05, S-BLK-17
    @Test func `drains whoever can reach a node, and lets them go on`() async throws {
        let graph = Graph()
        let base = try graph.add("base", driver: "memory", disk())
        let left = try graph.add("left", driver: "raw", disk(), edges: [Node.Edge(.filtered, base)])
        let right = try graph.add("right", driver: "raw", disk(), edges: [Node.Edge(.filtered, base)])
        let other = try graph.add("other", driver: "memory", disk())
        let sources = [Source(), Source(), Source()]
        for (index, node) in [left, right, other].enumerated() {
            _ = try graph.attach(.export("\(index)", isReadOnly: true), to: node, source: sources[index])
        }
        let seen = await graph.withDrained(base) { sources.map(\.entries) }
        #expect(seen == [["pause"], ["pause"], []])
        #expect(sources.map(\.entries) == [["pause", "resume"], ["pause", "resume"], []])
        await graph.withDrained(left) {}
        #expect(sources.map(\.entries.count) == [4, 2, 0])
    }
}

@Suite struct `Bitmaps of an export` {
    private let graph = Graph()
    private let tracker = BitmapTracker(disk())

    private func chain(isReadOnly: Bool = false) throws -> Node {
        let base = try graph.add("base", driver: "memory", tracker)
        let window = try RawWindow(tracker, offset: 65536)
        let filter = try graph.add("filter", driver: "raw", window, edges: [Node.Edge(.filtered, base, offset: 65536)])
        return try graph.add("top", driver: "qcow2", disk(isReadOnly: isReadOnly), edges: [Node.Edge(.backing, filter)])
    }

    private func take(_ references: [BitmapReference], _ node: Node, isReadOnly: Bool = false) throws(BitmapError) -> ExportedBitmaps {
        try ExportedBitmaps.take(references, from: node, in: graph, isReadOnly: isReadOnly, user: "export 'disk'")
    }

    // S-EXP-11
    @Test func `are found through filters and backing files, where they lie`() async throws {
        let top = try chain()
        let bitmap = try tracker.addBitmap("b", granularity: 65536, isEnabled: false)
        bitmap.mark(ByteRange(ofDevice: 1 << 17))
        let taken = try take([.name("b")], top)
        var list = ExtentList(byteCountLimit: 1 << 17)
        try await taken.found[0].source.extents(of: ByteRange(ofDevice: 1 << 17), into: &list)
        #expect(list.extents == [Extent(65536, .dirty), Extent(65536, [])], "the window begins inside")
        #expect { try take([.name("c")], top) } throws: { ($0 as? BitmapError)?.reason == .notFound }
    }

    // S-EXP-12, S-EXP-13
    @Test func `do not change under readers who cannot know`() throws {
        let top = try chain()
        let bitmap = try tracker.addBitmap("b")
        #expect { try take([.name("b")], top, isReadOnly: true) } throws: { ($0 as? BitmapError)?.reason == .enabled }
        try take([.onNode("base", name: "b")], top, isReadOnly: true).release()
        try take([.name("b")], top).release()
        try bitmap.disable()
        try take([.name("b")], top, isReadOnly: true).release()
        #expect { try take([.onNode("top", name: "b")], top) } throws: { ($0 as? BitmapError)?.reason == .notFound }
        #expect { try take([.onNode("nowhere", name: "b")], top) } throws: { ($0 as? BitmapError)?.reason == .notFound }
    }

    // S-EXP-14, S-EXP-15, S-EXP-16, S-BUG-26
    @Test func `are busy from when all were found until the end`() throws {
        let top = try chain()
        let first = try tracker.addBitmap("first")
        let second = try tracker.addBitmap("second")
        #expect { try take([.name("first"), .name("none")], top) } throws: { ($0 as? BitmapError)?.reason == .notFound }
        #expect(!first.isBusy)
        #expect { try take([.name("first"), .onNode("base", name: "first")], top) } throws: { ($0 as? BitmapError)?.reason == .invalid }
        #expect(!first.isBusy)
        let taken = try take([.name("first"), .name("second")], top)
        #expect(first.isBusy && second.isBusy)
        #expect { try take([.name("second")], top) } throws: { ($0 as? BitmapError)?.reason == .busy }
        taken.release()
        #expect(!first.isBusy && !second.isBusy)
        second.setInconsistent()
        #expect { try take([.name("first"), .name("second")], top) } throws: { ($0 as? BitmapError)?.reason == .inconsistent }
        #expect(!first.isBusy)
        first.setReadOnly(true)
        try take([.name("first")], top).release()
    }
}
