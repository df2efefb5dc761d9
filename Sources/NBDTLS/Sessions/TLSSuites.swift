import NIOCore
import NIOSSL

/// What is spoken: TLS 1.2 and 1.3, in 1.2 only with suites that keep the past secret when a key is lost (P-TLS-01).
enum TLSSuites {
    static let x509 = [
        "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305",
    ].joined(separator: ":")
    /// All that BoringSSL has of that kind with pre-shared keys, which it knows in TLS 1.2 alone. GnuTLS knows them all, too.
    static let psk = ["ECDHE-PSK-CHACHA20-POLY1305", "ECDHE-PSK-AES256-CBC-SHA", "ECDHE-PSK-AES128-CBC-SHA"].joined(separator: ":")

    /// A peer that does not answer our close_notify is not waited for any longer.
    static let shutdownLimit = TimeAmount.seconds(2)

    static func apply(to configuration: inout TLSConfiguration, isPSK: Bool) {
        configuration.minimumTLSVersion = .tlsv12
        configuration.maximumTLSVersion = isPSK ? .tlsv12 : .tlsv13
        configuration.cipherSuites = isPSK ? psk : x509
        configuration.shutdownTimeout = shutdownLimit
    }
}
