import Block
import BlockDrivers
import BlockGraph
import Logging
import TestPeers
import Testing

@testable import NBDServer
@testable import NBDTool

/// fio writes to a chain of images, reads back and compares, while its export is paused and moved without end.
@Suite(.serialized, .timeLimit(.minutes(3)), .enabled(if: Peer.isInstalled("fio"))) struct `A busy export` {
    // S-DRN-01…06, S-BLK-16, S-BLK-17
    @Test(arguments: ["raw", "qcow2"], [true, false])
    func `loses nothing when it is drained and moved under load`(format: String, fastPath: Bool) async throws {
        let scratch = Scratch()
        let path = try await scratch.raw("base", 7, byteCount: 32 << 20)
        var options = "driver=raw,file.filename=\(path)"
        if format == "qcow2" {
            let top = try await scratch.image("top", over: "base", "raw", byteCount: 32 << 20)
            options = "driver=qcow2,file.filename=\(top)"
        }
        let graph = Graph()
        let node = try await graph.open(NodeOptions(KeyValueList(options, context: "test").pairs), ToolDrivers.all(RawOptions(), ImageRules()), isReadOnly: false)
        var configuration = NBDServer.Configuration(listeners: [Listener(.unix(path: scratch["socket"]))])
        configuration.usesFastPath = fastPath
        let server = try NBDServer(
            exports: [Export(name: "disk", device: node.face)], configuration: configuration,
            logger: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() }))
        let source = try #require(server.requestSource(ofExport: "disk"))
        _ = try graph.attach(.export("disk", isReadOnly: false), to: node, source: source)
        let (drainCount, moveCount, verdict) = try await server.whileServing {
            // Four jobs, each with a part of the disk of its own, which it writes in any order and verifies, twice.
            let job = """
                fio --name=job --ioengine=nbd --uri='nbd+unix:///disk?socket=\(scratch["socket"])' --rw=randwrite --bsrange=512-64k --size=6m \
                --offset_increment=8m --numjobs=4 --iodepth=8 --loops=2 --verify=crc32c --verify_state_save=0 --randrepeat=0
                """
            _ = Peer.output("cd '\(scratch.path)' && (\(job) >log 2>&1; echo $? >status) >/dev/null 2>&1 &")
            _ = (scratch["log"], scratch["status"])
            var (drainCount, moveCount, round) = (0, 0, 0)
            var verdict: String?
            while verdict == nil {
                round += 1
                if round.isMultiple(of: 2) {
                    moveCount += await server.move(export: "disk", toLoop: round / 2 % max(server.loopCount, 1))
                } else {
                    await graph.withDrained(node) { try? await Task.sleep(for: .milliseconds(2)) }
                    drainCount += 1
                }
                try await Task.sleep(for: .milliseconds(5))
                if let text = Peer.output("cat '\(scratch["status"])' 2>/dev/null"), !text.isEmpty { verdict = text }
            }
            return (drainCount, moveCount, verdict)
        }
        #expect(verdict == "0", "fio: \(Peer.output("tail -n 30 '\(scratch["log"])'") ?? "")")
        #expect(drainCount > 10)
        #expect(moveCount > 10 || !fastPath || server.loopCount < 2)
        await graph.close()
        if format == "qcow2" {
            #expect(Peer.output("qemu-img check -q '\(scratch["top"])' && echo clean") == "clean")
        }
    }
}
