import Block
import BlockDrivers
import Glibc
import QCOW2

/// A directory for images that goes when the test does.
final class Scratch {
    let path: String
    private var directories: [String] = []
    private var files: Set<String> = []

    init() {
        path = "/tmp/nbdtool-\(UInt64.random(in: .min ... .max))"
        mkdir(path, 0o700)
    }

    deinit {
        for file in files { unlink(file) }
        for directory in directories.reversed() { rmdir(directory) }
        rmdir(path)
    }

    /// Where a file of this name is, or will be.
    subscript(name: String) -> String {
        files.insert("\(path)/\(name)")
        return "\(path)/\(name)"
    }

    func directory(_ name: String) {
        directories.append("\(path)/\(name)")
        mkdir("\(path)/\(name)", 0o700)
    }

    func link(_ name: String, to destination: String) { symlink(destination, self[name]) }

    /// A raw file of `byteCount` times the same byte.
    @discardableResult
    func raw(_ name: String, _ byte: UInt8 = 0, byteCount: Int = 1 << 20) async throws -> String {
        let file = try await make(name)
        try await file.write(at: 0, from: [UInt8](repeating: byte, count: byteCount).span.bytes, [])
        await file.close()
        return self[name]
    }

    /// A qcow2 image. Names of other files are as they are to stand in it.
    @discardableResult
    func image(
        _ name: String, over backing: String? = nil, _ format: String? = nil, data: (name: String, place: String)? = nil,
        byteCount: UInt64 = 1 << 20, clusterByteCount: Int = 65536, bitmap: String? = nil
    ) async throws -> String {
        var options = ImageOptions()
        options.clusterByteCount = clusterByteCount
        options.backingFileName = backing.map { Array($0.utf8) }
        options.backingFormat = format.map { Array($0.utf8) }
        options.dataFile = data.map { ImageOptions.DataFile(name: Array($0.name.utf8)) }
        var dataFile: RawFile?
        if let data { dataFile = try await make(data.place) }
        let file = try await make(name)
        let image = try await ImageFile.create(file, virtualByteCount: byteCount, options, dataFile: dataFile)
        if let bitmap { try await image.addBitmap(Array(bitmap.utf8)) }
        await file.close()
        await dataFile?.close()
        return self[name]
    }

    private func make(_ name: String) async throws -> RawFile {
        close(open(self[name], O_CREAT | O_RDWR, 0o600))
        return try await RawFile.open(self[name], RawOptions(cache: .unsafe, isGrowable: true))
    }
}

extension BlockDevice {
    /// The bytes of a part that should all be the same; nil when they are not.
    func byte(at offset: UInt64, count: Int = 4096) async throws -> UInt8? {
        let bytes = try await bytes(at: offset, count: count)
        return Set(bytes).count == 1 ? bytes[0] : nil
    }

    func fill(_ byte: UInt8, at offset: UInt64, count: Int = 4096) async throws {
        try await store([UInt8](repeating: byte, count: count), at: offset)
    }
}
