import Block
import BlockDrivers
import NBDProtocol
import QCOW2

/// An image and all that lies below it, in the order of reading.
struct OpenedChain {
    /// The image first.
    var images: [OpenedImage]

    static let limit = 200

    /// - Parameter rules: nil follows every name.
    static func open(
        _ path: String, _ format: ImageFormat?, _ rules: PathRules, isReadOnly: Bool = true, isLocked: Bool = true
    ) async throws(ToolError) -> OpenedChain {
        var images: [OpenedImage] = []
        var next: (path: String, format: ImageFormat?)? = (path, format)
        while let (path, format) = next {
            guard images.count < limit, !images.contains(where: { $0.path == path }) else {
                throw .runtime("'\(path)' lies below itself, or there are more than \(limit) images on top of each other")
            }
            let opened = try await OpenedImage.open(path, format, isReadOnly: isReadOnly || !images.isEmpty, isLocked: isLocked)
            images.append(opened)
            next = nil
            guard let header = opened.image?.header else { continue }
            do throws(FormatError) { try header.requireReadable() } catch { throw .runtime("Could not open '\(path)': \(error)") }
            guard let name = header.backingFileName else { continue }
            let below = try ImagePath.resolve(String(decoding: name, as: UTF8.self), from: path)
            try rules.check(below, namedBy: path)
            let format = try header.backingFormat.map { bytes throws(ToolError) in
                let text = String(decoding: bytes, as: UTF8.self)
                guard let format = ImageFormat(rawValue: text) else {
                    throw .runtime("'\(path)': a backing file of format '\(text.sanitized())' is not supported")
                }
                return format
            }
            next = (below, format)
        }
        return OpenedChain(images: images)
    }

    /// The image as a disk. All files belong to it from then on.
    func device(_ rules: PathRules, snapshot: SnapshotSelector? = nil, isReadOnly: Bool = true) async throws(ToolError) -> any BlockDevice {
        var below: (any BlockDevice)?
        for (depth, opened) in images.enumerated().reversed() {
            guard let header = opened.image?.header else {
                below = opened.file
                continue
            }
            let options = QCOW2Image.Options(isReadOnly: isReadOnly || depth > 0, snapshot: depth == 0 ? snapshot : nil)
            let dataFile = try await opened.openDataFile(rules, isReadOnly: options.isReadOnly)
            do throws(BlockError) {
                below = try await QCOW2Image.open(header, on: opened.file, backing: below, dataFile: dataFile, options)
            } catch {
                throw .runtime("Could not open '\(opened.path)': \(error.detail)")
            }
        }
        guard let below else { throw .runtime("nothing to open") }
        return below
    }

    func close() async {
        for opened in images { await opened.file.close() }
    }
}

extension OpenedImage {
    /// The external data file, if the image wants one.
    func openDataFile(_ rules: PathRules, isReadOnly: Bool) async throws(ToolError) -> RawFile? {
        guard let header = image?.header, header.hasDataFile else { return nil }
        guard let name = header.dataFileName else { throw .runtime("'\(path)' does not name its data file") }
        let dataPath = try ImagePath.resolve(String(decoding: name, as: UTF8.self), from: path)
        try rules.check(dataPath, namedBy: path)
        return try await OpenedImage.open(dataPath, .raw, isReadOnly: isReadOnly).file
    }
}
