import NIOSSL

/// What went wrong in TLS, in one line for people: what NIOSSL says holds file names and numbers of BoringSSL.
public enum TLSFailure {
    /// - Returns: nil when the error is none of TLS.
    public static func explain(_ error: any Error) -> String? {
        switch error {
        case let error as NIOSSLError:
            switch error {
            case .handshakeFailed(let reason): return "the handshake failed: \(explain(reason))"
            case .shutdownFailed(let reason): return "the shutdown failed: \(explain(reason))"
            case .uncleanShutdown: return "the peer has closed without saying goodbye"
            case .noCertificateToValidate, .unableToValidateCertificate: return "the peer's certificate cannot be verified"
            default: return "\(error)"
            }
        case let error as BoringSSLError: return explain(error)
        case let error as NIOSSLExtraError: return "\(error.description)"
        case let error as TLSRefusal: return error.description
        case is NIOSSLCloseTimedOutError: return "the peer does not answer our goodbye"
        default: return nil
        }
    }

    /// The peer ended the connection below TLS, without a close_notify.
    public static func isUncleanEnd(_ error: any Error) -> Bool { (error as? NIOSSLError) == .uncleanShutdown }

    private static func explain(_ error: BoringSSLError) -> String {
        switch error {
        case .sslError(let stack), .unknownError(let stack), .invalidSNIName(let stack), .failedToSetALPN(let stack):
            // "… error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED at …": the name is what people search for.
            let reasons = stack.compactMap { error in
                error.description.split(separator: " at ").first?.split(separator: ":").last?.drop { $0 == " " }
            }
            return reasons.isEmpty ? "unknown" : reasons.joined(separator: ", ")
        default: return "\(error)"
        }
    }
}
