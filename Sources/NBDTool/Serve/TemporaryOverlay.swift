import Block
import BlockDrivers
import BlockGraph
import QCOW2

/// An empty image over any device, in a file that has no name and is gone with us: `-s`.
enum TemporaryOverlay {
    /// - Returns: the overlay's node; its file, too, belongs to the graph.
    /// - Throws: `.runtime` when there is no room for the file.
    static func add(over node: Node, to graph: Graph) async throws(ToolError) -> Node {
        do {
            let file = try await makeFile()
            let header = try await write(to: file, byteCount: node.device.info.byteCount)
            let edges = [Node.Edge(.file, try graph.add(driver: "file", file)), Node.Edge(.backing, node)]
            return try graph.add(driver: "qcow2", try await QCOW2Image.open(header, on: edges, QCOW2Image.Options()), edges: edges)
        } catch let error as BlockError {
            throw .runtime("Could not make a temporary overlay: \(error.detail)")
        } catch {
            throw (error as? ToolError) ?? .runtime("Could not make a temporary overlay: \(error)")
        }
    }

    private static func makeFile() async throws -> RawFile {
        let directory = HostProcess.variable("TMPDIR") ?? "/var/tmp"
        let path = "\(directory)/nbd-overlay-\(UInt64.random(in: 0 ... .max))"
        try HostProcess.create(path, mode: 0o600)
        defer { _ = HostProcess.remove(path) }
        return try await RawFile.open(path, RawOptions(cache: .unsafe, isLocked: false, isGrowable: true))
    }

    /// Header, L1 table, refcount table and one refcount block, each where it ends up in an image of qemu-img's.
    private static func write(to file: RawFile, byteCount: UInt64) async throws -> ImageHeader {
        // Larger clusters for disks whose L1 table would be too large otherwise.
        let bits = byteCount < 1 << 44 ? 16 : 21
        guard let geometry = ImageGeometry(clusterBits: bits, refcountOrder: 4, hasExtendedL2: false) else {
            throw BlockError(.invalid, "no geometry")
        }
        let cluster = UInt64(geometry.clusterByteCount)
        var header = ImageHeader(version: 3, geometry: geometry, virtualByteCount: byteCount)
        header.backingFileName = Array("disk".utf8)
        header.l1EntryCount = UInt32(clamping: geometry.l1EntryCount(for: byteCount))
        header.refcountTableOffset = cluster
        header.refcountTableClusterCount = 1
        header.l1TableOffset = 3 * cluster
        let used = 3 + geometry.clusterCount(of: header.l1TableByteCount)
        try await file.resize(to: used * cluster)
        let counts = (0..<used).flatMap { _ in [0, 1] as [UInt8] }
        let front = try header.encoded()
        let tableEntry = bigEndian(2 * cluster)
        try await file.write(at: 0, from: front.rawBytes, [])
        try await file.write(at: cluster, from: tableEntry.rawBytes, [])
        try await file.write(at: 2 * cluster, from: counts.rawBytes, [])
        return header
    }

    private static func bigEndian(_ value: UInt64) -> [UInt8] {
        (0..<8).map { UInt8(truncatingIfNeeded: value >> (56 - 8 * UInt64($0))) }
    }
}
