import NBDServer

@testable import NBDTool

/// What is written in QEMU's notation of keys and values; the first byte says which option it is the value of. Promises: no trap, and a reason
/// for what is refused; what is accepted can be asked.
@Sendable func fuzzObjects(_ input: [UInt8]) {
    guard let choice = input.first else { return }
    let text = String(decoding: input.dropFirst(), as: UTF8.self)
    switch choice {
    case UInt8(ascii: "o"):
        // Lines are several --object.
        expectReason {
            for object in try ToolObject.all(text.split(separator: "\n").map(String.init)).values {
                if case .authorization(.list(let list)) = object { _ = list.allows("CN=client,O=Example") }
            }
        }
    case UInt8(ascii: "e"): expectReason { _ = try ExportPlan(parsing: text, defaults: .init(), readOnly: false) }
    case UInt8(ascii: "i"): expectReason { _ = try ExportPlan(imageOptions: text, defaults: .init(), readOnly: true) }
    case UInt8(ascii: "j"): expectReason { _ = try NameList(contents: Array(input.dropFirst()), path: "fuzz.json").allows(text) }
    case UInt8(ascii: "t"):
        expectReason {
            var plan = TracePlan()
            try plan.add(text)
            _ = plan.points
        }
    case UInt8(ascii: "n"):
        if let network = IPNetwork(text) {
            let printed = network.description
            precondition(IPNetwork(printed) == network, "'\(printed)' means something else")
            precondition(network.contains(network.address), "a network without its own address")
        }
    default:
        for option in ["--allow", "--deny"] {
            expectReason {
                let rule = try AccessRule(parsing: text, option: option)
                precondition(!rule.permissions.isEmpty, "a rule about nothing")
                let rules = AccessRules(allowed: [rule], denied: [])
                for peer in peers where !rules.admits(peer) {
                    precondition(rules.permissions(of: peer, for: "disk").isEmpty, "not let in, but allowed something")
                }
            }
        }
    }
}

private let peers: [PeerIdentity] = [
    PeerIdentity(address: .ip(.v4(0x0A00_0001))), PeerIdentity(address: .ip(.v6(1)), tls: .certificate(distinguishedName: "CN=a")),
    PeerIdentity(address: .unix, unix: .init(uid: 0, gid: 0, pid: 1)), PeerIdentity(address: .unknown, tls: .psk(user: "alice")),
]
