import Block
import QCOW2

/// Which end of a copy failed.
enum CopyError: Error {
    case reading(BlockError)
    case writing(BlockError)
    case image(ImageError)
}

/// Copies what a disk holds into one that reads as zeroes.
enum DiskCopy {
    /// Bytes that are moved at a time.
    static let stepByteCount: UInt64 = 2 << 20
    /// A run of zeroes of this length, at a multiple of it, is not written.
    static let sparseByteCount = 4096

    static func copy(_ source: any BlockDevice, to target: any BlockDevice) async throws(CopyError) {
        try await eachPiece(of: source, step: min(stepByteCount, UInt64(source.info.blockSize.maximum))) {
            bytes, offset throws(CopyError) in
            var start = 0
            while start < bytes.count {
                let end = min(start + sparseByteCount, bytes.count)
                guard !isZero(bytes, start..<end) else {
                    start = end
                    continue
                }
                var last = end
                while last < bytes.count, !isZero(bytes, last..<min(last + sparseByteCount, bytes.count)) {
                    last = min(last + sparseByteCount, bytes.count)
                }
                do throws(BlockError) {
                    try await target.write(at: offset + UInt64(start), from: bytes.rawBytes.extracting(start..<last), [])
                } catch {
                    throw .writing(error)
                }
                start = last
            }
        }
        do throws(BlockError) { try await target.flush() } catch { throw .writing(error) }
    }

    /// Clusters are packed by all processors, some at a time, and stored in order.
    static func compress(_ source: any BlockDevice, into image: ImageFile) async throws(CopyError) {
        let clusterByteCount = image.header.clusterByteCount
        let type = image.header.compression
        let writer: CompressedWriter
        do throws(ImageError) { writer = try await CompressedWriter(image) } catch { throw .image(error) }
        let step = max(UInt64(clusterByteCount), stepByteCount)
        try await eachPiece(of: source, step: step) { bytes, offset throws(CopyError) in
            let count = (bytes.count + clusterByteCount - 1) / clusterByteCount
            let packed = await withTaskGroup(of: (Int, [UInt8], [UInt8]?).self) { group in
                for index in 0..<count {
                    let start = index * clusterByteCount
                    let end = min(start + clusterByteCount, bytes.count)
                    guard !isZero(bytes, start..<end) else { continue }
                    let cluster = Array(bytes[start..<end]) + [UInt8](repeating: 0, count: clusterByteCount - (end - start))
                    group.addTask { (index, cluster, type.packed(cluster)) }
                }
                var results: [(Int, [UInt8], [UInt8]?)] = []
                for await result in group { results.append(result) }
                return results.sorted { $0.0 < $1.0 }
            }
            do throws(ImageError) {
                for (index, cluster, small) in packed {
                    try await writer.write(small, of: cluster, at: offset + UInt64(index * clusterByteCount))
                }
            } catch {
                throw .image(error)
            }
        }
        do throws(ImageError) { try await writer.finish() } catch { throw .image(error) }
    }

    /// Reads everything that may hold data, in order, each piece at a multiple of `step`.
    private static func eachPiece(
        of source: any BlockDevice, step: UInt64, _ body: ([UInt8], UInt64) async throws(CopyError) -> Void
    ) async throws(CopyError) {
        let end = source.info.byteCount
        var offset: UInt64 = 0
        while offset < end {
            // Whole pieces of a hole are left out; one that holds anything else is read.
            if let hole = try await hole(in: source, at: offset) {
                let after = offset + hole
                let next = after == end ? end : after - after % step
                if next > offset {
                    offset = next
                    continue
                }
            }
            let count = min(step, end - offset)
            let bytes: [UInt8]
            do throws(BlockError) { bytes = try await source.bytes(at: offset, count: Int(count)) } catch { throw .reading(error) }
            try await body(bytes, offset)
            offset += count
        }
    }

    /// The length of the run of zeroes at `offset` that the device knows of; nil when there is none.
    private static func hole(in source: any BlockDevice, at offset: UInt64) async throws(CopyError) -> UInt64? {
        guard let range = ByteRange(start: offset, count: source.info.byteCount - offset) else { return nil }
        var list = ExtentList(byteCountLimit: range.count, extentCountLimit: 1)
        do throws(BlockError) { try await source.status(of: range, into: &list) } catch { throw .reading(error) }
        guard let first = list.extents.first, first.status.contains(.zero) else { return nil }
        return first.count
    }

    private static func isZero(_ bytes: [UInt8], _ range: Range<Int>) -> Bool { bytes.rawBytes.extracting(range).isZero }
}

extension CompressionType {
    /// The packed bytes; nil when they are not fewer.
    fileprivate func packed(_ cluster: [UInt8]) -> [UInt8]? {
        var room = [UInt8](repeating: 0, count: cluster.count - 1)
        var span = room.mutableSpan
        // SAFETY: any bit pattern is a byte.
        var bytes = unsafe span.mutableBytes
        guard let count = shrink(cluster.rawBytes, into: &bytes) else { return nil }
        return Array(room[..<count])
    }
}
