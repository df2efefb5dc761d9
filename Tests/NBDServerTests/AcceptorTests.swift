import Block
import Glibc
import HostIO
import Logging
import NBDClient
import NBDProtocol
import NIOCore
import Synchronization
import Testing

@testable import NBDServer

private func freshPath() -> String { "/tmp/nbd-test-\(UInt64.random(in: .min ... .max)).sock" }

private func isOpen(_ descriptor: CInt) -> Bool { fcntl(descriptor, F_GETFD) >= 0 }

private func socketPair() -> (CInt, CInt) {
    var ends: [CInt] = [-1, -1]
    precondition(socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0, &ends) == 0)
    return (ends[0], ends[1])
}

@Suite(.serialized) struct `Listening sockets` {
    // S-SRV-02
    @Test(
        arguments: [
            (.unix(path: ""), "empty"), (.unix(path: "/tmp/a\0b"), "NUL"),
            (.unix(path: "/tmp/" + String(repeating: "x", count: 103)), "107 bytes"),
            (.unix(path: "/tmp"), "/tmp: Address already in use"), (.unix(path: "/nowhere/socket"), "/nowhere/socket: No such file"),
            (.tcp(host: "127.0.0.1", port: 65536), "port"), (.tcp(host: "192.0.2.1", port: 0), "192.0.2.1:0: Cannot assign"),
            (.tcp(host: "no.such.host.invalid", port: 0), "'no.such.host.invalid'"),
            (.inherited(descriptor: 999), "descriptor 999: Bad file"), (.connected(descriptor: 999), "descriptor 999: Bad file"),
            (.inherited(descriptor: -1), "descriptor -1: Bad file"),
        ] as [(Listener.Address, String)])
    func `that cannot be opened say where and why`(address: Listener.Address, text: String) async throws {
        let error = await #expect(throws: ServerError.self) { _ = try await ListeningSocket.open([Listener(address)]) }
        #expect(error?.kind == .cannotListen)
        #expect(error?.description.contains(text) == true, "\(error?.description ?? "")")
    }

    @Test func `are all closed when one cannot be opened, those that were handed over too`() async throws {
        let path = freshPath()
        let (connected, other) = socketPair()
        let (later, alsoOther) = socketPair()
        defer { for end in [other, alsoOther] { ListeningSocket.close(end) } }
        let inherited = socket(AF_INET, CInt(SOCK_STREAM.rawValue), 0)
        await #expect(throws: ServerError.self) {
            _ = try await ListeningSocket.open([
                Listener(.unix(path: path)), Listener(.connected(descriptor: connected)), Listener(.inherited(descriptor: inherited)),
                Listener(.unix(path: "/nowhere/socket")), Listener(.connected(descriptor: later)),
            ])
        }
        for descriptor in [connected, inherited, later] { #expect(!isOpen(descriptor)) }
        #expect(access(path, F_OK) != 0)
    }

    #if os(Linux)
    // Host of the client; nil: the listener's own.
    @Test(arguments: [("127.0.0.1", nil), ("::1", nil), ("127.0.0.1", "127.0.0.2")])
    func `give a client on this host room at once and no pace, and others what is usual`(host: String, clientHost: String?) throws {
        let listening: ListeningSocket
        do {
            listening = try ListeningSocket.tcp(SocketAddress(ipAddress: host, port: 0), isIPv6Only: true)
        } catch let error as IOError where error.errnoCode == EADDRNOTAVAIL || error.errnoCode == EAFNOSUPPORT {
            return  // a host without IPv6
        }
        defer { listening.close() }
        let address = try #require(listening.address)
        let client = socket(host == "::1" ? AF_INET6 : AF_INET, CInt(SOCK_STREAM.rawValue), 0)
        defer { ListeningSocket.close(client) }
        if let clientHost {
            // Another address than the server's, as another host would have.
            let own = try SocketAddress(ipAddress: clientHost, port: 0)
            #expect(own.withSockAddr { bind(client, $0, socklen_t($1)) } == 0)
        }
        let usual = congestionControl(of: client)
        #expect(address.withSockAddr { connect(client, $0, socklen_t($1)) } == 0)
        var ready = pollfd(fd: listening.descriptor, events: Int16(POLLIN), revents: 0)
        #expect(poll(&ready, 1, 5000) == 1)
        guard case .client(let descriptor) = listening.accept() else {
            Issue.record("nobody")
            return
        }
        defer { ListeningSocket.close(descriptor) }
        // Not only now, but from its first byte on.
        #expect(congestionControl(of: listening.descriptor) == "reno")
        #expect(congestionControl(of: descriptor) == (clientHost == nil ? "reno" : usual))
        let before = number(SO_RCVBUF, of: descriptor)
        try withExtendedLifetime(StreamSocket(duplicating: descriptor)) {
            #expect((number(SO_RCVBUF, of: descriptor) > before) == (clientHost == nil))
            #expect(number(SO_RCVLOWAT, of: descriptor) == 1, "it would wait for a long message")
        }
    }

    private func number(_ option: CInt, of descriptor: CInt) -> CInt {
        var value: CInt = 0
        var length = socklen_t(MemoryLayout<CInt>.size)
        #expect(getsockopt(descriptor, SOL_SOCKET, option, &value, &length) == 0)
        return value
    }

    private func congestionControl(of descriptor: CInt) -> String {
        var name = [UInt8](repeating: 0, count: 16)
        var length = socklen_t(name.count)
        #expect(getsockopt(descriptor, CInt(IPPROTO_TCP), TCP_CONGESTION, &name, &length) == 0)
        return String(decoding: name.prefix { $0 != 0 }, as: UTF8.self)
    }
    #endif

    @Test func `take their name out of the file system, but not a name that is another's by now`() throws {
        let path = freshPath()
        let first = try ListeningSocket.unix(path)
        #expect(throws: IOError.self) { try ListeningSocket.unix(path) }
        #expect(access(path, F_OK) == 0, "the one who failed took it away")
        removeSocket(path)
        let second = try ListeningSocket.unix(path)
        first.close()
        #expect(access(path, F_OK) == 0)
        second.close()
        #expect(access(path, F_OK) != 0)
    }

    // The name of an abstract socket ends where its length says: another length is another socket.
    @Test(arguments: [("/tmp/nbd-test-", 40), ("/tmp/nbd-test-", 107), ("\0nbd-test-", 30), ("\0nbd-test-", 107)])
    func `have the names that they are given`(start: String, byteCount: Int) throws {
        let random = String(UInt64.random(in: .min ... .max), radix: 36)
        let path = start + random + String(repeating: "x", count: byteCount - start.utf8.count - random.utf8.count)
        let socket = try ListeningSocket.unix(path)
        defer { socket.close() }
        let client = RawSocket(unix: path)
        guard case .client(let descriptor) = socket.accept() else {
            Issue.record("nobody came")
            return
        }
        withExtendedLifetime(client) { ListeningSocket.close(descriptor) }
    }

    // Children must not inherit what a client is connected to, and nothing may hold up the thread or the loop.
    @Test func `and their clients never wait, and are closed by exec`() throws {
        let path = freshPath()
        let socket = try ListeningSocket.unix(path)
        defer { socket.close() }
        guard case .nobody = socket.accept() else {
            Issue.record("somebody is there")
            return
        }
        let client = RawSocket(unix: path)
        guard case .client(let descriptor) = socket.accept() else {
            Issue.record("nobody came")
            return
        }
        for descriptor in [socket.descriptor, descriptor] {
            #expect(fcntl(descriptor, F_GETFD) & FD_CLOEXEC != 0)
            #expect(fcntl(descriptor, F_GETFL) & O_NONBLOCK != 0)
        }
        withExtendedLifetime(client) { ListeningSocket.close(descriptor) }
    }

    @Test func `of the empty host are on one port, one for each kind of address`() async throws {
        let opened = try await ListeningSocket.open([Listener(.tcp(host: "", port: 0))])
        let sockets = opened.flatMap(\.sockets)
        defer { for socket in sockets { socket.close() } }
        #expect(Set(sockets.compactMap { $0.address?.ipAddress }) == ["0.0.0.0", "::"])
        #expect(Set(sockets.compactMap { $0.address?.port }).count == 1)
    }
}

/// Takes the clients of an acceptor.
private final class Guests: Sendable {
    struct State {
        var places = Int.max
        var clients: [(descriptor: CInt, export: String?)] = []
        var errors: [IOError] = []
    }

    let state = Mutex(State())

    deinit { for client in state.withLock({ $0.clients }) { ListeningSocket.close(client.descriptor) } }

    init(places: Int = .max) { state.withLock { $0.places = places } }

    var host: Acceptor.Host {
        .init(
            hasPlace: { [self] in state.withLock { $0.places > 0 } },
            receive: { [self] descriptor, listener in
                state.withLock { state in
                    state.places -= 1
                    state.clients.append((descriptor, listener.oldstyleExport))
                }
            },
            cannotAccept: { [self] error in state.withLock { $0.errors.append(error) } })
    }

    var names: [String?] { state.withLock { $0.clients.map(\.export) } }
    var errors: [IOError] { state.withLock { $0.errors } }

    /// Until so many have come; the suite's time limit ends it otherwise.
    func wait(for count: Int) async throws {
        while names.count < count { try await Task.sleep(for: .milliseconds(2)) }
    }
}

@Suite(.serialized, .timeLimit(.minutes(1))) struct `An acceptor` {
    /// Doors with the names "0", "1", …
    private func withDoors(_ count: Int, _ body: ([Acceptor.Door], [String]) async throws -> Void) async throws {
        let paths = (0..<count).map { _ in freshPath() }
        let doors = try paths.enumerated().map { (index, path) in
            Acceptor.Door(listener: Listener(.unix(path: path), oldstyleExport: "\(index)"), socket: try ListeningSocket.unix(path))
        }
        try await body(doors, paths)
        for path in paths { #expect(access(path, F_OK) != 0, "the socket is still there") }
    }

    // S-SRV-02, S-SRV-03
    @Test func `lets in whoever comes to any of its listeners`() async throws {
        try await withDoors(3) { doors, paths in
            let guests = Guests()
            let acceptor = try Acceptor(doors, host: guests.host)
            let clients = [2, 0, 1, 0].map { RawSocket(unix: paths[$0]) }
            try await guests.wait(for: 4)
            #expect(guests.names.compactMap { $0 }.sorted() == ["0", "0", "1", "2"])
            await acceptor.close()
            withExtendedLifetime(clients) {}
        }
    }

    // S-SRV-04, S-LIM-13
    @Test func `lets nobody in without a place, and goes on when there is one, with each listener in turn`() async throws {
        try await withDoors(2) { doors, paths in
            let guests = Guests(places: 1)
            let acceptor = try Acceptor(doors, host: guests.host)
            let clients = [0, 0, 0, 1, 1].map { RawSocket(unix: paths[$0]) }
            for count in 1...5 {
                try await guests.wait(for: count)
                try await Task.sleep(for: .milliseconds(20))
                #expect(guests.names.count == count)
                guests.state.withLock { $0.places = 1 }
                acceptor.wake()
            }
            // Who came first depends on when the thread looked; the places after that are shared.
            #expect(Set(guests.names[1...2].compactMap { $0 }) == ["0", "1"])
            await acceptor.close()
            withExtendedLifetime(clients) {}
        }
    }

    @Test func `tells of a refusal and tries again later, while the other listeners go on`() async throws {
        try await withDoors(2) { doors, paths in
            let guests = Guests()
            let calls = Mutex(0)
            let acceptor = try Acceptor(doors, host: guests.host) { socket in
                guard socket.descriptor == doors[0].socket.descriptor else { return socket.accept() }
                let call = calls.withLock { calls in
                    calls += 1
                    return calls
                }
                return call == 1 ? .refused(IOError(errnoCode: EMFILE, reason: "accept")) : socket.accept()
            }
            let first = RawSocket(unix: paths[0])
            while guests.errors.isEmpty { try await Task.sleep(for: .milliseconds(2)) }
            let second = RawSocket(unix: paths[1])
            try await guests.wait(for: 1)
            #expect(guests.names == ["1"])
            try await guests.wait(for: 2)
            #expect(guests.names == ["1", "0"])
            #expect(guests.errors.map(\.errnoCode) == [EMFILE])
            #expect(calls.withLock { $0 } == 2, "it did not rest")
            await acceptor.close()
            withExtendedLifetime((first, second)) {}
        }
    }

    @Test func `turns away who waits when it is closed`() async throws {
        try await withDoors(2) { doors, paths in
            let guests = Guests(places: 0)
            let acceptor = try Acceptor(doors, host: guests.host)
            let clients = paths.map { RawSocket(unix: $0) }
            await acceptor.close()
            for client in clients { #expect(client.isClosedByServer()) }
            #expect(guests.names.isEmpty)
            for door in doors { #expect(!isOpen(door.socket.descriptor)) }
        }
    }

    @Test func `may be closed before it has begun`() async throws {
        for _ in 0..<50 {
            try await withDoors(1) { doors, _ in await (try Acceptor(doors, host: Guests().host)).close() }
        }
    }
}

@Suite(.serialized, .timeLimit(.minutes(1))) struct `Connections of a server` {
    private func makeServer(_ listeners: [Listener], _ change: (inout NBDServer.Configuration) -> Void = { _ in }) throws -> NBDServer {
        var configuration = NBDServer.Configuration(listeners: listeners)
        configuration.drainLimit = .seconds(2)
        change(&configuration)
        return try NBDServer(
            exports: [Export(name: "disk", device: MemoryDevice(byteCount: 1 << 20))], configuration: configuration,
            logger: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() }))
    }

    // S-SRV-04: the limit is one for all listeners
    @Test func `of all listeners share the places`() async throws {
        let paths = [freshPath(), freshPath()]
        let server = try makeServer(paths.map { Listener(.unix(path: $0)) }) { $0.connectionLimit = 1 }
        try await server.start()
        var clients = [RawSocket(unix: paths[0])]
        #expect(clients[0].receive(18).count == 18)
        clients.append(RawSocket(unix: paths[1]))
        try await Task.sleep(for: .milliseconds(100))
        #expect(server.connectionCount == 1)
        clients.removeFirst()
        #expect(clients[0].receive(18).count == 18)
        server.shutdown()
        try await server.run()
        #expect(server.connectionCount == 0)
    }

    // S-SRV-05: nobody is forgotten between the listener and the loop
    @Test func `that begin while the server ends are closed`() async throws {
        let path = freshPath()
        let server = try makeServer([Listener(.unix(path: path))])
        try await server.start()
        server.shutdown()
        let clients = (0..<20).map { _ in RawSocket(unix: path) }
        for client in clients.prefix(10) { #expect(client.isClosedByServer()) }
        try await server.run()
        for client in clients { #expect(client.isClosedByServer()) }
        #expect(server.connectionCount == 0)
        #expect(access(path, F_OK) != 0)
    }

    @Test func `that were handed over are served, and then the server ends`() async throws {
        let (ours, theirs) = socketPair()
        let server = try makeServer([Listener(.connected(descriptor: ours))])
        let serving = Task { try await server.run() }
        let client = RawSocket(descriptor: theirs)
        #expect(client.receive(18).count == 18)
        client.finishSending()
        #expect(client.isClosedByServer())
        try await serving.value
        #expect(!isOpen(ours))
    }

    // IPV6_V6ONLY is off for an address that stands alone
    @Test func `come over IPv4 to a listener on all IPv6 addresses`() async throws {
        let server = try makeServer([Listener(.tcp(host: "::", port: 0))])
        try await server.start()
        let port = try #require(server.uris.first?.split(separator: ":").last?.split(separator: "/").first)
        for host in ["127.0.0.1", "[::1]"] {
            let client = try await NBDClient.connect("nbd://\(host):\(port)/disk", options: NBDClient.Options())
            try await client.disconnect()
        }
        server.shutdown()
        try await server.run()
    }
}
