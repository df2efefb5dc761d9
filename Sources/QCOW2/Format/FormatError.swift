public import Block

/// Why an image, or a part of it, cannot be used.
public struct FormatError: Error, Equatable, Sendable {
    public enum Kind: Equatable, Sendable, CaseIterable {
        /// The bytes are not a qcow2 image.
        case notAnImage
        /// Well-formed, but something that this implementation does not do: an unknown feature, encryption, a size over a limit.
        case unsupported
        /// The bytes break a rule of the format.
        case corrupt
    }

    public var kind: Kind
    /// For people. Names fields, tables and offsets of the image, never files of the host.
    public var detail: String

    public init(_ kind: Kind, _ detail: String) {
        self.kind = kind
        self.detail = detail
    }

    @inline(never) static func corrupt(_ detail: String) -> FormatError { FormatError(.corrupt, detail) }
    @inline(never) static func unsupported(_ detail: String) -> FormatError { FormatError(.unsupported, detail) }
}

extension FormatError: CustomStringConvertible {
    public var description: String { detail }
}

extension BlockError {
    /// What a request meets that runs into a damaged part of an image.
    public init(_ error: FormatError) {
        self.init(error.kind == .corrupt ? .inputOutput : .unsupported, error.detail)
    }
}

extension UInt64 {
    /// `0x…`, as offsets are written in messages.
    var hex: String { "0x" + String(self, radix: 16) }
}
