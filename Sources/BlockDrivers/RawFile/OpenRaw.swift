public import Block

/// Opens the file or disk at `path` as a device with everything that `options` ask for.
///
/// - Throws: see `RawFile.open`.
public func openRaw(_ path: String, _ options: RawOptions = RawOptions()) async throws(OpenError) -> any BlockDevice {
    let file = try await RawFile.open(path, options)
    guard options.detectZeroes != .off, !options.isReadOnly else { return file }
    return DetectZeroes(file, mayUnmap: options.detectZeroes == .unmap)
}
