import NBDProtocol

/// Decoding is written out because a key that nobody knows must be an error: a misspelt limit is a missing limit.
extension Configuration: Decodable {
    init(from decoder: any Decoder) throws {
        let keys = try StrictKeys(
            decoder,
            [
                "default-export", "pid-file", "poll", "fast-path", "user", "group", "sandbox", "tls", "limits", "listeners", "exports", "allow", "deny",
            ])
        defaultExport = try keys.decode("default-export")
        pidFile = try keys.decode("pid-file")
        poll = try keys.decode("poll")
        fastPath = try keys.decode("fast-path")
        user = try keys.decode("user")
        group = try keys.decode("group")
        sandbox = try keys.decode("sandbox")
        tls = try keys.decode("tls")
        limits = try keys.decode("limits")
        listeners = try keys.decode("listeners")
        exports = try keys.decode("exports")
        allow = try keys.decode("allow")
        deny = try keys.decode("deny")
    }
}

extension Configuration.Limits: Decodable {
    init(from decoder: any Decoder) throws {
        let keys = try StrictKeys(
            decoder,
            [
                "connections", "connections-per-peer", "handshakes", "handshakes-per-peer", "requests", "handshake", "stall", "progress",
                "peer-silence", "drain", "memory", "connection-memory",
            ])
        connections = try keys.decode("connections")
        connectionsPerPeer = try keys.decode("connections-per-peer")
        handshakes = try keys.decode("handshakes")
        handshakesPerPeer = try keys.decode("handshakes-per-peer")
        requests = try keys.decode("requests")
        stall = try keys.decode("stall")
        progress = try keys.decode("progress")
        peerSilence = try keys.decode("peer-silence")
        handshake = try keys.decode("handshake")
        drain = try keys.decode("drain")
        memory = try keys.decode("memory")
        connectionMemory = try keys.decode("connection-memory")
    }
}

extension Configuration.TLS: Decodable {
    init(from decoder: any Decoder) throws {
        let keys = try StrictKeys(decoder, ["credentials", "directory", "verify-peer", "mode"])
        credentials = try keys.decode("credentials")
        directory = try keys.require("directory")
        verifyPeer = try keys.decode("verify-peer")
        mode = try keys.decode("mode")
    }
}

extension Configuration.Listener: Decodable {
    init(from decoder: any Decoder) throws {
        let keys = try StrictKeys(decoder, ["host", "port", "unix", "activated", "oldstyle", "list"])
        host = try keys.decode("host")
        port = try keys.decode("port")
        unix = try keys.decode("unix")
        activated = try keys.decode("activated")
        oldstyle = try keys.decode("oldstyle")
        list = try keys.decode("list")
    }
}

extension Configuration.Export: Decodable {
    init(from decoder: any Decoder) throws {
        let keys = try StrictKeys(
            decoder,
            [
                "name", "description", "file", "memory", "null", "pattern", "format", "read-only", "tls", "offset", "size", "cache", "discard",
                "detect-zeroes", "aio", "locking", "allocation-depth", "bitmap", "track",
            ])
        name = try keys.require("name")
        description = try keys.decode("description")
        file = try keys.decode("file")
        memory = try keys.decode("memory")
        null = try keys.decode("null")
        pattern = try keys.decode("pattern")
        format = try keys.decode("format")
        readOnly = try keys.decode("read-only")
        tls = try keys.decode("tls")
        offset = try keys.decode("offset")
        size = try keys.decode("size")
        cache = try keys.decode("cache")
        discard = try keys.decode("discard")
        detectZeroes = try keys.decode("detect-zeroes")
        aio = try keys.decode("aio")
        locking = try keys.decode("locking")
        allocationDepth = try keys.decode("allocation-depth")
        bitmap = try keys.decode("bitmap")
        track = try keys.decode("track")
    }
}

extension Configuration.Rule: Decodable {
    init(from decoder: any Decoder) throws {
        let keys = try StrictKeys(decoder, ["export", "from", "uid", "gid", "pid", "tls", "tls-dn", "tls-user", "may"])
        export = try keys.decode("export")
        from = try keys.decode("from") ?? .none
        uid = try keys.decode("uid") ?? .none
        gid = try keys.decode("gid") ?? .none
        pid = try keys.decode("pid") ?? .none
        tls = try keys.decode("tls")
        tlsDN = try keys.decode("tls-dn")
        tlsUser = try keys.decode("tls-user")
        may = try keys.decode("may")
    }
}

/// A keyed container that refuses keys outside a list.
struct StrictKeys {
    struct Key: CodingKey {
        var stringValue: String
        var intValue: Int? { nil }
        init(_ name: String) { stringValue = name }
        init?(stringValue: String) { self.stringValue = stringValue }
        init?(intValue: Int) { nil }
    }

    private let container: KeyedDecodingContainer<Key>

    init(_ decoder: any Decoder, _ known: Set<String>) throws {
        container = try decoder.container(keyedBy: Key.self)
        // The alphabetically first, so that the message does not depend on the order of a hash table.
        if let unknown = container.allKeys.map(\.stringValue).filter({ !known.contains($0) }).min() {
            let table = decoder.codingPath.isEmpty ? "" : " in '\(decoder.codingPath.dotted)'"
            let text = "unknown key '\(unknown.sanitized())'\(table)"
            throw DecodingError.dataCorrupted(.init(codingPath: [], debugDescription: text))
        }
    }

    func decode<T: Decodable>(_ name: String) throws -> T? {
        try container.decodeIfPresent(T.self, forKey: Key(name)).map { try check($0, name) }
    }

    func require<T: Decodable>(_ name: String) throws -> T {
        try check(container.decode(T.self, forKey: Key(name)), name)
    }

    /// The system would see a path that ends where its first NUL is; no command line can have one.
    private func check<T>(_ value: T, _ name: String) throws -> T {
        guard let text = value as? String, text.utf8.contains(0) else { return value }
        throw DecodingError.dataCorruptedError(forKey: Key(name), in: container, debugDescription: "contains the character U+0000")
    }
}
