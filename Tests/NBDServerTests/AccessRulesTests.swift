import Testing

@testable import NBDServer

private func peer(_ address: String, tls: PeerIdentity.TLS = .none) throws -> PeerIdentity {
    PeerIdentity(address: .ip(try #require(IPAddress(address))), tls: tls)
}

private func unix(uid: UInt32 = 1000, gid: UInt32 = 100, pid: Int32 = 7) -> PeerIdentity {
    PeerIdentity(address: .unix, unix: .init(uid: uid, gid: gid, pid: pid))
}

private func rule(_ permissions: Permissions, _ change: (inout AccessRule) -> Void = { _ in }) -> AccessRule {
    var rule = AccessRule(permissions)
    change(&rule)
    return rule
}

@Suite struct `Access rules` {
    @Test func `that are none allow everything`() throws {
        let rules = AccessRules()
        #expect(rules.permissions(of: try peer("192.0.2.1"), for: "disk") == .all)
        #expect(rules.admits(try peer("192.0.2.1")))
    }

    @Test func `deny what none of them allows`() throws {
        let rules = AccessRules(allowed: [rule(.read) { $0.exports = Glob("backup-*") }])
        #expect(rules.permissions(of: unix(), for: "backup-1") == .read)
        #expect(rules.permissions(of: unix(), for: "disk").isEmpty)
        #expect(rules.permissions(of: unix(), for: "").isEmpty)
    }

    // S-INFO-23
    @Test func `add up, and denials win whatever the order`() throws {
        let network = try #require(IPNetwork("10.0.0.0/8"))
        let guest = try #require(IPNetwork("10.6.6.0/24"))
        let rules = AccessRules(
            allowed: [rule([.list, .read]), rule([.write, .trim]) { $0.origins = [.network(network)] }],
            denied: [rule(.write) { $0.origins = [.network(guest)] }])
        #expect(rules.permissions(of: try peer("192.0.2.1"), for: "disk") == [.list, .read])
        #expect(rules.permissions(of: try peer("10.1.1.1"), for: "disk") == [.list, .read, .write, .trim])
        #expect(rules.permissions(of: try peer("10.6.6.1"), for: "disk") == [.list, .read], "TRIM needs to write")
        #expect(rules.permissions(of: try peer("::ffff:10.6.6.1"), for: "disk") == [.list, .read])
    }

    @Test(
        arguments: [
            (.write, [.read, .write]), (.trim, [.read, .write, .trim]), (.contexts, [.read, .contexts]), (.list, .list), (.read, .read),
        ] as [(Permissions, Permissions)])
    func `give what is needed along with what is given`(given: Permissions, all: Permissions) {
        #expect(AccessRules(allowed: [rule(given)]).permissions(of: unix(), for: "a") == all)
    }

    @Test(
        arguments: [
            (.read, .list), (.write, [.list, .read, .contexts]), (.trim, [.list, .read, .write, .contexts]), (.all, []),
            (.contexts, [.list, .read, .write, .trim]), (.list, [.read, .write, .trim, .contexts]),
        ] as [(Permissions, Permissions)])
    func `take what needs it along with what is taken`(taken: Permissions, left: Permissions) {
        #expect(AccessRules(allowed: [rule(.all)], denied: [rule(taken)]).permissions(of: unix(), for: "a") == left)
    }

    @Test func `ask every condition, of which any value will do`() throws {
        let rules = AccessRules(
            allowed: [
                rule(.read) {
                    $0.uids = [1000, 1001]
                    $0.gids = [100]
                }
            ])
        #expect(rules.permissions(of: unix(uid: 1001), for: "a") == .read)
        #expect(rules.permissions(of: unix(uid: 1002), for: "a").isEmpty)
        #expect(rules.permissions(of: unix(uid: 1000, gid: 101), for: "a").isEmpty)
        #expect(rules.permissions(of: try peer("127.0.0.1"), for: "a").isEmpty, "nobody knows who that is")
        #expect(AccessRules(allowed: [rule(.read) { $0.pids = [7] }]).permissions(of: unix(pid: 8), for: "a").isEmpty)
        #expect(AccessRules(allowed: [rule(.read) { $0.origins = [.unix] }]).permissions(of: unix(), for: "a") == .read)
        #expect(AccessRules(allowed: [rule(.read) { $0.origins = [.unix] }]).permissions(of: try peer("::1"), for: "a").isEmpty)
        #expect(AccessRules(allowed: [rule(.read) { $0.origins = [.unix] }]).permissions(of: .init(address: .unknown), for: "a").isEmpty)
    }

    // S-TLS-08
    @Test func `know TLS identities, and take one kind for no other`() throws {
        let dn = AccessRules(allowed: [rule(.read) { $0.distinguishedName = Glob("CN=client?,O=*") }])
        #expect(dn.permissions(of: try peer("::1", tls: .certificate(distinguishedName: "CN=client1,O=Example")), for: "a") == .read)
        #expect(dn.permissions(of: try peer("::1", tls: .certificate(distinguishedName: "CN=client10,O=Example")), for: "a").isEmpty)
        #expect(dn.permissions(of: try peer("::1", tls: .psk(user: "CN=client1,O=Example")), for: "a").isEmpty)
        #expect(dn.permissions(of: try peer("::1"), for: "a").isEmpty)
        let psk = AccessRules(allowed: [rule(.read) { $0.pskUser = Glob("alice") }])
        #expect(psk.permissions(of: try peer("::1", tls: .psk(user: "alice")), for: "a") == .read)
        #expect(psk.permissions(of: try peer("::1", tls: .certificate(distinguishedName: "alice")), for: "a").isEmpty)
        let any = AccessRules(allowed: [rule(.read) { $0.usesTLS = true }])
        #expect(any.permissions(of: try peer("::1", tls: .anonymous), for: "a") == .read)
        #expect(any.permissions(of: try peer("::1"), for: "a").isEmpty)
    }

    @Test func `do not even let in whom they can give nothing`() throws {
        let network = try #require(IPNetwork("10.0.0.0/8"))
        var rules = AccessRules(allowed: [
            rule(.read) {
                $0.origins = [.network(network)]
                $0.distinguishedName = Glob("CN=x")
            }
        ])
        #expect(!rules.admits(try peer("192.0.2.1")))
        #expect(!rules.greets(try peer("192.0.2.1")))
        #expect(rules.greets(try peer("10.0.0.1")))
        #expect(rules.admits(try peer("10.0.0.1")), "STARTTLS may follow")
        #expect(!rules.admits(try peer("10.0.0.1", tls: .anonymous)))
        #expect(rules.admits(try peer("10.0.0.1", tls: .certificate(distinguishedName: "CN=x"))))
        rules.denied = [
            rule(.all) {
                $0.origins = [.network(network)]
                $0.usesTLS = false
            }
        ]
        #expect(rules.greets(try peer("10.0.0.1")), "what is taken from clients in clear is not from this one yet")
        rules.denied = [rule(.all) { $0.origins = [.network(network)] }]
        #expect(!rules.admits(try peer("10.0.0.1")))
        #expect(!rules.greets(try peer("10.0.0.1")))
    }

    @Test func `ask the verdict about TLS of clients with TLS only`() throws {
        let rules = AccessRules(tlsVerdict: { $0.tlsName == "good" })
        #expect(rules.admits(try peer("::1")))
        #expect(rules.admits(try peer("::1", tls: .psk(user: "good"))))
        #expect(!rules.admits(try peer("::1", tls: .psk(user: "bad"))))
        #expect(!rules.admits(try peer("::1", tls: .anonymous)))
    }
}

@Suite struct `A place book` {
    private func book(_ change: (inout NBDServer.Configuration) -> Void = { _ in }) -> PlaceBook {
        var configuration = NBDServer.Configuration(listeners: [])
        change(&configuration)
        return PlaceBook(configuration)
    }

    @Test func `tells peers apart by IPv4 address, IPv6 network and Unix user`() throws {
        func key(_ text: String) throws -> PlaceBook.Key { PlaceBook.Key(try peer(text)) }
        #expect(try key("192.0.2.1") != key("192.0.2.2"))
        #expect(try key("192.0.2.1") == key("::ffff:192.0.2.1"))
        #expect(try key("2001:db8::1") == key("2001:db8::ffff:2"))
        #expect(try key("2001:db8::1") != key("2001:db8:0:1::1"))
        #expect(PlaceBook.Key(unix(uid: 1)) == PlaceBook.Key(unix(uid: 1, pid: 9)))
        #expect(PlaceBook.Key(unix(uid: 1)) != PlaceBook.Key(unix(uid: 2)))
    }

    @Test func `leaves a quarter of the places to others`() {
        for (limit, share) in [(100, 75), (33, 25), (32, 0), (4, 0), (1, 0), (0, 0)] {
            #expect(book { $0.connectionLimit = limit }.peerConnectionLimit == share)
        }
        #expect(book { $0.peerConnectionLimit = 7 }.peerConnectionLimit == 7)
    }

    @Test func `refuses one connection too many, until one leaves`() {
        var book = book { $0.peerConnectionLimit = 2 }
        #expect(book.enter(1, .user(1)) == .welcome(crowdsOut: nil))
        #expect(book.enter(2, .user(1)) == .welcome(crowdsOut: nil))
        #expect(book.enter(3, .user(1)) == .refused)
        #expect(book.enter(4, .user(2)) == .welcome(crowdsOut: nil))
        book.leave(3)  // it never was in
        #expect(book.enter(5, .user(1)) == .refused)
        book.leave(1)
        book.leave(1)
        #expect(book.enter(6, .user(1)) == .welcome(crowdsOut: nil))
        #expect(book.enter(7, .user(1)) == .refused)
    }

    @Test func `cuts the oldest handshake, of the same peer first`() {
        var book = book {
            $0.handshakeCountLimit = 3
            $0.peerHandshakeCountLimit = 2
            $0.peerConnectionLimit = 0
        }
        #expect(book.enter(1, .user(1)) == .welcome(crowdsOut: nil))
        #expect(book.enter(2, .user(2)) == .welcome(crowdsOut: nil))
        #expect(book.enter(3, .user(2)) == .welcome(crowdsOut: nil))
        #expect(book.enter(4, .user(2)) == .welcome(crowdsOut: 2), "its own, although another is older")
        #expect(book.enter(5, .user(3)) == .welcome(crowdsOut: 1))
        book.negotiated(3)
        #expect(book.enter(6, .user(4)) == .welcome(crowdsOut: nil))
        #expect(book.handshakeCount == 3)
        for id in 1...6 as ClosedRange<UInt64> { book.leave(id) }
        #expect(book.handshakeCount == 0)
    }
}

@Suite struct `A watch over progress` {
    private func limits(stall: Int = 10, progress: Int = 120) -> ProgressWatch.Limits {
        var configuration = NBDServer.Configuration(listeners: [])
        configuration.stallLimit = .seconds(stall)
        configuration.progressLimit = .seconds(progress)
        return ProgressWatch.Limits(configuration)
    }

    /// Verdicts of so many looks, between which so many bytes move.
    private func verdicts(
        _ looks: Int, moving byteCount: Int, _ limits: ProgressWatch.Limits, held: Int? = 1 << 20, isContended: Bool = false, requests: UInt64 = 0
    ) -> Int? {
        var watch = ProgressWatch()
        var requestCount: UInt64 = 0
        for look in 1...looks {
            watch.begin(requestCount: requestCount)
            watch.movedByteCount += byteCount
            requestCount += requests
            let verdict = watch.verdict(limits, isAwaitingPeer: true, requestCount: requestCount, heldByteCount: held, isContended: isContended)
            if verdict != nil { return look }
        }
        return nil
    }

    // S-CO-06, S-CO-07
    @Test func `gives up who drips, whatever the rhythm of the drops`() {
        #expect(verdicts(100, moving: 0, limits()) == 12)
        #expect(verdicts(100, moving: 1023, limits()) == 12)
        #expect(verdicts(100, moving: 1024, limits()) == nil)
        #expect(verdicts(100, moving: 1, limits(), requests: 1) == nil, "small requests are progress")
        #expect(verdicts(100, moving: 0, limits(stall: 0)) == 1)
        #expect(verdicts(100, moving: 0, limits(progress: 0)) == nil)
        #expect(limits(stall: 0, progress: 0).period == nil)
        #expect(limits(stall: 60, progress: 30).period == .seconds(30))
    }

    @Test func `gives up who holds what others wait for, and is not done with it soon`() {
        let held = 32 << 20
        #expect(verdicts(1, moving: held / 10 - 1, limits(), held: held, isContended: true) == 1)
        #expect(verdicts(1, moving: held / 10, limits(), held: held, isContended: true) == nil)
        #expect(verdicts(1, moving: 0, limits(), held: nil, isContended: true) == nil)
        #expect(verdicts(9, moving: 2048, limits(stall: 0), held: held, isContended: true) == nil)
    }

    @Test func `starts over when somebody else is waited for`() {
        var watch = ProgressWatch()
        let limits = limits()
        for look in 1...30 {
            watch.begin(requestCount: 0)
            let verdict = watch.verdict(limits, isAwaitingPeer: look % 11 != 0, requestCount: 0, heldByteCount: nil, isContended: false)
            #expect(verdict == nil)
        }
    }
}
