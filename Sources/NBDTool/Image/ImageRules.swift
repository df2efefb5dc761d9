import NBDProtocol
import QCOW2

/// Which files an image may bring in.
///
/// An image comes from strangers and can name any file of the host, whose contents its guest would then read or write. So what it names
/// has to lie in its own directory, or in or below one that the operator allows, whatever symbolic links say; and a file is only what the
/// image or the operator says it is, because a guest can write what a probe would find.
struct ImageRules: Equatable, Sendable {
    /// Directories, as the operator wrote them. `/` allows all.
    var allowed: [String] = []
    /// Look what a backing file is when the image that names it does not say.
    var probesFormat = false

    /// A file that an image names.
    struct Place: Equatable, Sendable {
        /// As the image has it, from where we are: what people know it by.
        var name: String
        /// Without symbolic links: what is opened.
        var path: String
    }

    /// The file below the image at `image`, and what it is (nil: to be probed); nil when the image names none.
    ///
    /// - Throws: `.runtime` naming the image and what it may not have.
    func backing(of header: ImageHeader, at image: String) throws(ToolError) -> (place: Place, format: ImageFormat?)? {
        guard let name = header.backingFileName, !name.isEmpty else { return nil }
        let place = try place(name, "backing file", of: image)
        guard let format = header.backingFormat.map({ String(decoding: $0, as: UTF8.self) }) else {
            guard probesFormat else {
                throw .runtime(
                    "Could not open the backing file of '\(image)': the image does not say its format (qemu-img rebase -u -F FORMAT makes it), and --probe-backing was not given")
            }
            return (place, nil)
        }
        guard let known = ["file": .raw, "host_device": .raw][format] ?? ImageFormat(rawValue: format) else {
            throw .runtime("Could not open the backing file of '\(image)': its format '\(format.sanitized())' is not supported")
        }
        return (place, known)
    }

    /// The external data file of the image at `image`; nil when it has none.
    ///
    /// - Throws: see `backing`.
    func dataFile(of header: ImageHeader, at image: String) throws(ToolError) -> Place? {
        guard header.hasDataFile else { return nil }
        guard let name = header.dataFileName, !name.isEmpty else {
            throw .runtime("Could not open '\(image)': it has an external data file and does not say which")
        }
        return try place(name, "data file", of: image)
    }

    private func place(_ bytes: [UInt8], _ what: String, of image: String) throws(ToolError) -> Place {
        guard let text = String(validating: bytes, as: UTF8.self), !text.utf8.contains(0) else {
            throw .runtime("Could not open the \(what) of '\(image)': its name is not text")
        }
        let name = try ImagePath.resolve(text, from: image)
        guard let path = HostProcess.resolved(name) else {
            throw .runtime("Could not open the \(what) of '\(image)': '\(name.sanitized())' is not there, or may not be looked at")
        }
        let directory = HostProcess.directory(of: path)
        guard directory == HostProcess.resolved(image).map(HostProcess.directory) || isAllowed(path) else {
            throw .runtime(
                "Could not open the \(what) of '\(image)': '\(path.sanitized())' does not lie beside the image; --allow-path \(directory.sanitized()) allows it")
        }
        return Place(name: name, path: path)
    }

    private func isAllowed(_ path: String) -> Bool {
        allowed.contains { directory in
            HostProcess.resolved(directory).map { HostProcess.lies(path, inOrBelow: $0) } ?? false
        }
    }
}
