public import HostIO

extension BlockError {
    /// What the host refused, in the terms of a device. The text keeps the errno's symbol and leaves out the path, which is not the
    /// client's business (S-REP-12, P-ERR-09).
    @inline(never) public init(_ error: HostError) {
        let kind: Kind =
            switch error.name {
            case "ENOSPC", "EDQUOT", "EFBIG": .noSpace
            case "EROFS", "EPERM", "EACCES": .readOnly
            case "ENOMEM": .noMemory
            case "EINVAL": .invalid
            case "ENOTSUP", "ENOSYS": .unsupported
            default: .inputOutput
            }
        self.init(kind, "cannot \(error.operation): \(error.reason)")
    }
}
