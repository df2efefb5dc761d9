import Block
import BlockDrivers
import NBDProtocol
import QCOW2

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// A file, and what it is an image of.
struct OpenedImage {
    var path: String
    var file: RawFile
    /// Nil for raw.
    var image: ImageFile?
    /// The external data file; only opened in an `ImageChain`.
    var dataFile: RawFile?

    var format: ImageFormat { image == nil ? .raw : .qcow2 }

    /// In bytes: of the virtual disk.
    var byteCount: UInt64 { image?.header.virtualByteCount ?? file.currentByteCount }
}

extension OpenedImage {
    /// Opens `path`, takes its locks and reads its header.
    ///
    /// - Parameter format: nil lets the first bytes decide.
    /// - Throws: `.runtime` naming the file.
    static func open(_ path: String, _ format: ImageFormat? = nil, isReadOnly: Bool = true, isLocked: Bool = true) async throws(ToolError)
        -> OpenedImage
    {
        try await open(path, format, RawOptions(isReadOnly: isReadOnly, isLocked: isLocked, isGrowable: true))
    }

    static func open(_ path: String, _ format: ImageFormat?, _ options: RawOptions) async throws(ToolError) -> OpenedImage {
        let file: RawFile
        do throws(OpenError) {
            file = try await RawFile.open(path, options)
        } catch {
            throw .runtime(error.description)
        }
        do throws(OpenError) {
            var isImage = format == .qcow2 || options.isGrowable && !options.isReadOnly
            if !isImage, format == nil { isImage = (try? await ImageFile.open(file)) != nil }
            if isImage { try await file.lockAsImage() }
        } catch {
            await file.close()
            throw .runtime(error.description)
        }
        if format == .raw { return OpenedImage(path: path, file: file) }
        do throws(ImageError) {
            return OpenedImage(path: path, file: file, image: try await ImageFile.open(file))
        } catch {
            if case .format(let reason) = error, reason.kind == .notAnImage, format == nil { return OpenedImage(path: path, file: file) }
            await file.close()
            throw .runtime("Could not open '\(path)': \(error.description.sanitized(limit: 400))")
        }
    }

    /// The image, for what raw files cannot do.
    func qcow2(_ what: String) throws(ToolError) -> ImageFile {
        guard let image else { throw .runtime("'\(path)': a raw image has no \(what)") }
        return image
    }
}

/// Runs what a tool does to `path`, and names the file when it fails.
func withImageErrors<T>(_ path: String, _ body: () async throws(ImageError) -> T) async throws(ToolError) -> T {
    do throws(ImageError) {
        return try await body()
    } catch {
        throw .runtime("'\(path)': \(error.description.sanitized(limit: 400))")
    }
}

/// Where the files are that an image names.
enum ImagePath {
    /// The path that `name`, as it stands in the image at `path`, means: relative to the directory of the image.
    ///
    /// - Throws: `.runtime` for names of other protocols, which are not supported.
    static func resolve(_ name: String, from path: String) throws(ToolError) -> String {
        var name = name
        if name.hasPrefix("file:") {
            name.removeFirst("file:".count)
        } else if let colon = name.firstIndex(of: ":"), !name[..<colon].contains("/") {
            throw .runtime("'\(path)' names '\(name.sanitized())', which is not a file; only files are supported")
        }
        guard !name.hasPrefix("/"), let slash = path.lastIndex(of: "/") else { return name }
        return path[...slash] + name
    }

    /// Bytes that the file takes of its disk.
    static func allocatedByteCount(of path: String) -> UInt64? {
        HostProcess.status(of: path).map { UInt64(clamping: $0.st_blocks) &* 512 }
    }
}
