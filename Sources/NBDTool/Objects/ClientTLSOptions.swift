import ArgumentParser
import NBDClient
import NBDProtocol
import NBDTLS

/// How `nbd info` and `nbd list` encrypt: as the URI says it, or as qemu-nbd is told.
struct ClientTLSOptions: ParsableArguments {
    @Option(
        name: .long,
        help: ArgumentHelp("TLS credentials: tls-creds-x509,id=ID,dir=DIR or tls-creds-psk,id=ID,dir=DIR,username=USER.", valueName: "keys"))
    var object: [String] = []

    @Option(name: .long, help: ArgumentHelp("Encrypt with the credentials of this object, whatever the URI.", valueName: "id"))
    var tlsCreds: String?

    @Option(name: .long, help: ArgumentHelp("The name that the server's certificate must bear.", valueName: "name"))
    var tlsHostname: String?

    /// - Throws: naming the option, the parameter of the URI or the file at fault.
    func clientOptions(for uri: NBDURI) throws -> NBDClient.Options {
        var options = NBDClient.Options()
        options.tlsHostname = tlsHostname
        let objects = try ToolObject.all(object)
        if let tlsCreds {
            options.tls = try TLSClientPlan(credentials: ServePlan.credentials(tlsCreds, objects, .client)).load()
        } else if uri.requiresTLS {
            options.tls = try Self.credentials(for: uri)
        } else if tlsHostname != nil {
            throw ToolError.usage("--tls-hostname is not permitted without --tls-creds or a URI of nbds")
        }
        return options
    }

    /// What a URI of `nbds` asks for (P-URI-01, P-URI-05, P-URI-06).
    static func credentials(for uri: NBDURI) throws(ToolError) -> TLSClientCredentials {
        do {
            switch uri.tls.kind ?? (uri.tls.preSharedKeys == nil ? .x509 : .psk) {
            case .anon: throw ToolError.usage("tls-type=anon proves nothing to either side, and is not supported")
            case .psk:
                guard let path = uri.tls.preSharedKeys else {
                    throw ToolError.usage("tls-type=psk: say where the keys are by tls-psk-file=PATH, or by --object and --tls-creds")
                }
                let user = uri.user ?? HostProcess.variable("LOGNAME") ?? HostProcess.variable("USER") ?? TLSClientPlan.defaultUser
                return try TLSClientCredentials(user: user, preSharedKeyFile: path)
            case .x509:
                let verifiesPeer = uri.tls.verifiesPeer ?? true
                guard let directory = uri.tls.certificates ?? usualDirectory else {
                    return verifiesPeer ? TLSClientCredentials() : .unverified
                }
                return try TLSClientCredentials(directory: directory, verifiesPeer: verifiesPeer)
            }
        } catch let error as ToolError {
            throw error
        } catch {
            throw .runtime("\(error)")
        }
    }

    /// Where libnbd looks for certificates when nobody says where they are; nil: there are none, and the system's authorities count.
    private static var usualDirectory: String? {
        let home = HostProcess.variable("HOME")
        let places = [home.map { $0 + "/.pki/libnbd" }, home.map { $0 + "/.config/pki/libnbd" }, "/etc/pki/libnbd"].compactMap(\.self)
        return places.first { (try? HostProcess.contents(of: $0 + "/ca-cert.pem", limit: 1 << 20)) != nil }
    }
}
