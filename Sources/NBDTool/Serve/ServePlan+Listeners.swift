import NBDProtocol

extension ServePlan {
    /// Addresses on the command line replace those of the configuration file.
    mutating func planListeners(_ options: ServeOptions, activated: [String]) throws(ToolError) {
        let places: [Place]
        if !activated.isEmpty {
            try planActivated(options, names: activated)
            places = []
        } else if options.isSingle {
            guard options.port == nil, options.binds.isEmpty, options.sockets.isEmpty else {
                throw .usage("--single serves standard input: --port, --bind and --socket cannot be given with it")
            }
            places = [.standardInput]
        } else {
            places = try options.style == .qemuNBD ? qemuPlaces(options) : nbdPlaces(options, hasConfigured: !listeners.isEmpty)
        }
        if !places.isEmpty {
            listeners = places.map { ListenerPlan(place: $0, oldstyleExport: options.oldstyleExport, isListable: options.isListable) }
        } else {
            for index in listeners.indices {
                if let export = options.oldstyleExport { listeners[index].oldstyleExport = export }
                if !options.isListable { listeners[index].isListable = false }
            }
        }
        // With the sockets there, `planActivated` has looked.
        for case .activated(let name) in listeners.map(\.place) where activated.isEmpty {
            throw .usage("listeners: no socket named '\(name.sanitized())' was passed: socket activation is not in use")
        }
        for (index, listener) in listeners.enumerated() where listeners[..<index].contains(where: { $0.place == listener.place }) {
            throw .usage("the same address is given twice: \(listener.place)")
        }
    }

    /// S-SRV-09. One listener for each name; what the configuration file says of a name holds for all sockets that have it.
    private mutating func planActivated(_ options: ServeOptions, names: [String]) throws(ToolError) {
        if options.port != nil { throw .usage("TCP port number can't be set when using socket activation") }
        if !options.binds.isEmpty { throw .usage("The interface can't be set when using socket activation") }
        if !options.sockets.isEmpty { throw .usage("Unix socket can't be set when using socket activation") }
        if options.isSingle { throw .usage("--single can't be given when using socket activation") }
        for listener in listeners {
            guard case .activated(let name) = listener.place else {
                throw .usage("listeners in the configuration file can't be used when using socket activation, unless they name its sockets")
            }
            guard names.contains(name) else {
                throw .usage(
                    "listeners: no socket named '\(name.sanitized())' was passed, only \(names.joined(separator: ", ").sanitized())")
            }
        }
        var known = Set(listeners.map(\.place))
        for name in names where known.insert(.activated(name: name)).inserted {
            listeners.append(ListenerPlan(place: .activated(name: name)))
        }
    }

    /// One Unix socket, or else TCP on all interfaces. Of several `-k` or `-b` qemu-nbd uses the last; all of them are served here.
    private func qemuPlaces(_ options: ServeOptions) throws(ToolError) -> [Place] {
        if !options.sockets.isEmpty {
            var places: [Place] = []
            for path in options.sockets {
                guard path.hasPrefix("/") else { throw .usage("socket path must be absolute") }
                places.append(.unix(path: try Self.checked(path: path)))
            }
            return places
        }
        let port = try options.port.map { text throws(ToolError) in try Self.port(text) } ?? Self.defaultPort
        let hosts = options.binds.isEmpty ? ["0.0.0.0"] : options.binds
        return try Self.places(hosts: hosts, port: port)
    }

    private func nbdPlaces(_ options: ServeOptions, hasConfigured: Bool) throws(ToolError) -> [Place] {
        var places: [Place] = []
        for path in options.sockets {
            if path == "-" {
                places.append(.privateSocket)
            } else if path.hasPrefix("@") {
                places.append(.unix(path: try Self.checked(path: "\0" + path.dropFirst())))
            } else {
                places.append(.unix(path: try Self.checked(path: path)))
            }
        }
        let port = try options.port.map { text throws(ToolError) in try Self.port(text) }
        if !options.binds.isEmpty {
            places += try Self.places(hosts: options.binds, port: port ?? Self.defaultPort)
        } else if let port {
            places.append(.loopback(port: port))
        }
        if places.isEmpty && !hasConfigured {
            // A command needs a server of its own, and must not collide with another one.
            places.append(options.runCommand == nil ? .loopback(port: Self.defaultPort) : .privateSocket)
        }
        return places
    }

    private static func places(hosts: [String], port: Int) throws(ToolError) -> [Place] {
        var places: [Place] = []
        for host in hosts {
            guard !host.isEmpty else { throw .usage("the address to bind to is empty") }
            // Brackets are how URIs write IPv6 addresses.
            let isBracketed = host.hasPrefix("[") && host.hasSuffix("]")
            places.append(.tcp(host: isBracketed ? String(host.dropFirst().dropLast()) : host, port: port))
        }
        return places
    }

    /// 0 lets the system choose.
    static func port(_ text: String) throws(ToolError) -> Int {
        guard let port = UInt16(text), !text.hasPrefix("+") else {
            throw .usage("invalid port '\(text.sanitized())': expected a number from 0 to 65535")
        }
        return Int(port)
    }

    static func checked(path: String) throws(ToolError) -> String {
        guard !path.isEmpty, path != "\0" else { throw .usage("the name of the Unix socket is empty") }
        guard path.utf8.count <= HostProcess.socketPathLimit else {
            throw .usage("the name of the Unix socket '\(path.sanitized())' is too long: over \(HostProcess.socketPathLimit) bytes")
        }
        return path
    }
}
