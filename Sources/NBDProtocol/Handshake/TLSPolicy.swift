/// What a server says to TLS (P-TLS-02). Constant for the life of a connection.
public enum TLSPolicy: String, Equatable, Sendable, CaseIterable {
    /// NOTLS: STARTTLS is refused.
    case off
    /// SELECTIVETLS: in clear, exports that require TLS do not exist.
    case optional
    /// FORCEDTLS: in clear, only ABORT and STARTTLS are answered.
    case required
}
