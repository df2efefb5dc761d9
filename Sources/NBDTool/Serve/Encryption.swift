import Logging
import NBDServer
import NBDTLS

/// What `--tls-creds` and `--tls-authz` name, loaded: how a server of this process encrypts.
final class Encryption: Sendable {
    /// nil: whoever has a certificate or a key may come in.
    let authorization: TLSAuthorization?
    private let plan: ServePlan.TLSPlan
    private let store: TLSCredentialStore
    private let logger: Logger

    /// - Throws: `.runtime` naming the file at fault.
    init(_ plan: ServePlan.TLSPlan, logger: Logger) throws(ToolError) {
        self.plan = plan
        self.logger = logger
        store = TLSCredentialStore(try Self.load(plan, logger))
        authorization = try plan.authorization.map { plan throws(ToolError) in try TLSAuthorization(plan, logger: logger) }
    }

    var configuration: NBDServer.Configuration.TLS { .init(credentials: store, policy: plan.policy) }

    /// New connections get what lies in the directory now; what cannot be used changes nothing.
    func reload() {
        do {
            store.replace(with: try Self.load(plan, logger))
            logger.notice("TLS credentials read again")
        } catch {
            logger.error("TLS credentials not read again, new connections get the old ones: \(error)")
        }
    }

    private static func load(_ plan: ServePlan.TLSPlan, _ logger: Logger) throws(ToolError) -> TLSServerCredentials {
        let credentials = try plan.credentials.load()
        for warning in credentials.warnings { logger.warning("\(warning)") }
        return credentials
    }
}
