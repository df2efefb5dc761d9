private import CCompression

/// How the compressed clusters of an image are packed; one way for all of them.
///
/// Spec: qcow2, "Additional fields", compression_type.
public enum CompressionType: UInt8, Equatable, Sendable, CaseIterable {
    /// Raw deflate streams.
    case zlib = 0
    case zstd = 1

    public init?(name: String) {
        guard let type = Self.allCases.first(where: { $0.name == name }) else { return nil }
        self = type
    }

    public var name: String {
        switch self {
        case .zlib: "zlib"
        case .zstd: "zstd"
        }
    }

    /// Fills `cluster` from the packed bytes at the front of `packed`. What follows them is ignored: a compressed cluster is stored with
    /// the sectors that it touches.
    ///
    /// Takes time in proportion to the cluster, and at most 8 MiB of memory beside it whatever the bytes are.
    ///
    /// - Throws: `.corrupt` when they are damaged or give less than a cluster. The contents of `cluster` are undefined then.
    public func expand(_ packed: RawSpan, into cluster: inout MutableRawSpan) throws(FormatError) {
        // SAFETY: both pointers stay inside their closures; the lengths are those of the spans.
        let status = unsafe cluster.withUnsafeMutableBytes { output in
            unsafe packed.withUnsafeBytes { input in
                unsafe ccompression_expand(kind, input.baseAddress, input.count, output.baseAddress, output.count)
            }
        }
        guard status == 0 else { throw FormatError(.corrupt, "a compressed cluster is damaged") }
    }

    /// Packs `cluster` into the front of `packed`: the number of bytes, or nil when it does not become smaller than that.
    public func shrink(_ cluster: RawSpan, into packed: inout MutableRawSpan) -> Int? {
        // SAFETY: as in `expand`.
        let count = unsafe packed.withUnsafeMutableBytes { output in
            unsafe cluster.withUnsafeBytes { input in
                unsafe ccompression_shrink(kind, input.baseAddress, input.count, output.baseAddress, output.count)
            }
        }
        return count > 0 ? count : nil
    }

    private var kind: ccompression_kind { self == .zlib ? CCOMPRESSION_DEFLATE : CCOMPRESSION_ZSTD }
}
