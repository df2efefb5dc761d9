public import SystemPackage

/// Why the operating system refused something.
///
/// `code` is matched by name, never by number: numbers differ by platform (P-ERR-09). Unlike a `BlockError`, it may name a file of this
/// host: show it to the operator, not to a client.
public struct HostError: Error, Equatable, Sendable {
    public var code: Errno
    /// What was tried, as a verb: "open", "read", "lock".
    public var operation: String
    /// The file, as the operator named it; nil when the caller knows.
    public var path: String?
    /// What the code alone does not say.
    public var detail: String?

    @inline(never) public init(_ code: Errno, _ operation: String, path: String? = nil, detail: String? = nil) {
        self.code = code
        self.operation = operation
        self.path = path
        self.detail = detail
    }

    /// The symbol of the code: "ENOSPC".
    public var name: String {
        Self.names.first { $0.0 == code }?.1 ?? "errno \(code.rawValue)"
    }

    /// The reason without the path, fit for a client's eyes.
    public var reason: String {
        detail ?? "\(code) (\(name))"
    }

    private static let names: [(Errno, String)] = [
        (.notPermitted, "EPERM"), (.noSuchFileOrDirectory, "ENOENT"), (.interrupted, "EINTR"), (.ioError, "EIO"),
        (.noSuchAddressOrDevice, "ENXIO"), (.badFileDescriptor, "EBADF"), (.resourceTemporarilyUnavailable, "EAGAIN"),
        (.noMemory, "ENOMEM"), (.permissionDenied, "EACCES"), (.resourceBusy, "EBUSY"), (.fileExists, "EEXIST"),
        (.operationNotSupportedByDevice, "ENODEV"), (.notDirectory, "ENOTDIR"), (.isDirectory, "EISDIR"),
        (.invalidArgument, "EINVAL"), (.tooManyOpenFilesInSystem, "ENFILE"), (.tooManyOpenFiles, "EMFILE"),
        (.inappropriateIOCTLForDevice, "ENOTTY"), (.textFileBusy, "ETXTBSY"), (.fileTooLarge, "EFBIG"), (.noSpace, "ENOSPC"),
        (.readOnlyFileSystem, "EROFS"), (.diskQuotaExceeded, "EDQUOT"), (.notSupported, "ENOTSUP"), (.noFunction, "ENOSYS"),
        (.staleNFSFileHandle, "ESTALE"), (.tooManySymbolicLinkLevels, "ELOOP"), (.fileNameTooLong, "ENAMETOOLONG"),
        (.overflow, "EOVERFLOW"), (.noLocks, "ENOLCK"),
    ]
}

extension HostError: CustomStringConvertible {
    public var description: String {
        "cannot \(operation)\(path.map { " '\($0)'" } ?? ""): \(reason)"
    }
}
