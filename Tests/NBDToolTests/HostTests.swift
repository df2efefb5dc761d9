import NBDProtocol
import Synchronization
import Testing

@testable import NBDTool

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// A directory of the test's own; gone with the value.
final class TestDirectory {
    let path: String

    init() throws {
        path = "/tmp/nbd-tool-test-\(getpid())-\(UInt32.random(in: 0...UInt32.max))"
        try #require(HostProcess.makeDirectory(path, mode: 0o700) == 0)
    }

    deinit {
        for name in ["socket", "file", "pid", "notify", "link", "second"] { _ = HostProcess.remove("\(path)/\(name)") }
        _ = HostProcess.removeDirectory(path)
    }

    func write(_ text: String, to name: String) throws -> String {
        let descriptor = HostProcess.open("\(path)/\(name)", O_WRONLY | O_CREAT | O_TRUNC, mode: 0o600)
        try #require(descriptor >= 0)
        defer { close(descriptor) }
        try #require(HostProcess.write(Array(text.utf8), to: descriptor) == nil)
        return "\(path)/\(name)"
    }

    /// A Unix socket bound to `name`.
    func bind(_ name: String, _ type: Int32) throws -> Int32 {
        let descriptor = socket(AF_UNIX, type, 0)
        try #require(descriptor >= 0)
        // SAFETY: the address is valid during the call.
        let result = unsafe HostProcess.withAddress(ofUnixSocket: "\(path)/\(name)") { address, length in
            unsafe systemBind(descriptor, address, length)
        }
        try #require(result == 0)
        return descriptor
    }
}

// S-SRV-09
@Suite struct `Socket activation` {
    @Test(arguments: [("1", [3]), ("3", [3, 4, 5]), ("0", [])] as [(String, [Int32])])
    func `numbers its descriptors from 3`(count: String, descriptors: [Int32]) throws {
        #expect(try SocketActivation(listenPID: "77", listenFDs: count, processID: 77).sockets.map(\.descriptor) == descriptors)
    }

    @Test(
        arguments: [
            (nil, "2", ["unknown", "unknown"]), ("a:b", "2", ["a", "b"]), ("a:a:", "3", ["a", "a", ""]), ("", "1", [""]), ("", "0", []),
        ] as [(String?, String, [String])])
    func `names its sockets`(text: String?, count: String, names: [String]) throws {
        #expect(try SocketActivation(listenPID: "77", listenFDs: count, names: text, processID: 77).sockets.map(\.name) == names)
        #expect(try SocketActivation(listenPID: "78", listenFDs: count, names: "too:many:names", processID: 77).sockets.isEmpty)
    }

    @Test(arguments: [("", "2"), ("a", "2"), ("a:b", "1")])
    func `with too few or too many names is an error`(names: String, count: String) {
        #expect(refusal(names, count).contains("LISTEN_FDNAMES"))
    }

    private func refusal(_ names: String, _ count: String) -> String {
        do {
            return "accepted: \(try SocketActivation(listenPID: "77", listenFDs: count, names: names, processID: 77))"
        } catch {
            return error.message
        }
    }

    @Test(arguments: [("78", "1"), (nil, "1"), ("77", nil), ("", "1"), ("x", "x"), ("77777777777777", "1")] as [(String?, String?)])
    func `is for one process only`(pid: String?, count: String?) throws {
        #expect(try SocketActivation(listenPID: pid, listenFDs: count, processID: 77).sockets.isEmpty)
    }

    @Test(arguments: ["", "x", "-1", "1.5", "1025", "99999999999999999999"])
    func `with a count that makes no sense is an error`(count: String) {
        #expect(throws: ToolError.self) { try SocketActivation(listenPID: "77", listenFDs: count, processID: 77) }
    }

    @Test func `tells listening sockets from others`() throws {
        let directory = try TestDirectory()
        let descriptor = try directory.bind("socket", HostProcess.streamType)
        defer { close(descriptor) }
        #expect(HostProcess.socketKind(descriptor) == (true, false))
        #expect(listen(descriptor, 1) == 0)
        #expect(HostProcess.socketKind(descriptor) == (true, true))
        let null = HostProcess.open("/dev/null", O_RDONLY)
        defer { close(null) }
        #expect(HostProcess.socketKind(null) == (false, false))
        #expect(HostProcess.socketKind(-1) == (false, false))
    }
}

@Suite struct `The sandbox` {
    @Test func `leaves the directories readable that a link leads through`() throws {
        let directory = try TestDirectory()
        let file = try directory.write("", to: "file")
        #expect(Sandbox.directories(behind: file) == [directory.path])
        #expect(Sandbox.directories(behind: "\(directory.path)/absent") == [directory.path])
        func link(_ name: String, to target: String) throws -> String {
            // SAFETY: strings are passed as NUL-terminated ones that are valid during the call.
            try #require(unsafe symlink(target, "\(directory.path)/\(name)") == 0)
            return "\(directory.path)/\(name)"
        }
        let second = try link("second", to: "/etc/passwd")
        #expect(Sandbox.directories(behind: second) == [directory.path, "/etc"])
        let first = try link("link", to: "../\(directory.path.dropFirst("/tmp/".count))/second")
        #expect(
            Sandbox.directories(behind: first)
                == [directory.path, "\(directory.path)/../\(directory.path.dropFirst("/tmp/".count))", "/etc"])
    }

    @Test func `ends at a link to itself`() throws {
        let directory = try TestDirectory()
        // SAFETY: as above.
        try #require(unsafe symlink("link", "\(directory.path)/link") == 0)
        #expect(Sandbox.directories(behind: "\(directory.path)/link").count == 41)
    }
}

@Suite struct `The service manager` {
    @Test(
        arguments: [
            ("/run/notify", "/run/notify"), ("@abstract", "\0abstract"), (nil, nil), ("", nil), ("/", nil), ("@", nil), ("vsock:2:1", nil),
            ("relative", nil), ("/" + String(repeating: "x", count: 200), nil),
        ] as [(String?, String?)])
    func `is found by its address`(address: String?, path: String?) {
        #expect(ServiceNotifier(address: address).path == path)
    }

    @Test func `hears that the server is ready and when it stops`() throws {
        let directory = try TestDirectory()
        let receiver = try directory.bind("notify", HostProcess.datagramType)
        defer { close(receiver) }
        let notifier = ServiceNotifier(address: "\(directory.path)/notify")
        notifier.ready("one\nREADY=0")
        notifier.stopping()
        let ready = String(decoding: HostProcess.read(from: receiver, limit: 4096), as: UTF8.self)
        #expect(ready == "READY=1\nSTATUS=one?READY=0\nMAINPID=\(getpid())")
        let stopping = String(decoding: HostProcess.read(from: receiver, limit: 4096), as: UTF8.self)
        #expect(stopping.hasPrefix("STOPPING=1\n"))
    }

    @Test func `may be gone`() {
        ServiceNotifier(address: "/nonexistent/notify").ready("nobody hears this")
    }
}

@Suite struct `Files that go with the process` {
    // S-SRV-10
    @Test func `include the pid file`() throws {
        let directory = try TestDirectory()
        let files = OwnedFiles()
        let path = try directory.write("old", to: "pid")
        try files.writePIDFile(path)
        #expect(try HostProcess.contents(of: path, limit: 100) == Array("\(getpid())\n".utf8))
        files.removeAll()
        #expect(HostProcess.status(of: path) == nil)
    }

    @Test func `make an error that names the pid file`() {
        #expect(throws: ToolError.runtime("Could not create '/nonexistent/pid': No such file or directory")) {
            try OwnedFiles().writePIDFile("/nonexistent/pid")
        }
    }

    @Test func `do not include what somebody else has put in their place`() throws {
        let directory = try TestDirectory()
        let files = OwnedFiles()
        let path = try directory.write("ours", to: "file")
        files.adopt(path)
        // Both exist at once, so that the new one cannot get the number of the old.
        let other = try directory.write("theirs", to: "pid")
        #expect(HostProcess.move(other, to: path) == 0)
        files.removeAll()
        #expect(try HostProcess.contents(of: path, limit: 100) == Array("theirs".utf8))
    }

    @Test func `include the directory of a private socket, which nobody else can enter`() throws {
        let files = OwnedFiles()
        let path = try files.makePrivateSocketPath()
        #expect(path.utf8.count <= HostProcess.socketPathLimit)
        let directory = String(path.dropLast("/socket".count))
        let status = try #require(HostProcess.status(of: directory))
        #expect(status.st_mode & 0o7777 == 0o700)
        #expect(try files.makePrivateSocketPath() != path)
        files.removeAll()
        #expect(HostProcess.status(of: directory) == nil)
    }

    // S-SRV-08: qemu-nbd removes whatever is in the way; here only the dead are.
    @Test func `make way for a socket only when they are dead sockets`() throws {
        let directory = try TestDirectory()
        let path = "\(directory.path)/socket"
        try OwnedFiles.clearStaleSocket(path)
        let server = try directory.bind("socket", HostProcess.streamType)
        #expect(listen(server, 1) == 0)
        #expect(throws: ToolError.runtime("cannot listen on '\(path)': Address already in use")) { try OwnedFiles.clearStaleSocket(path) }
        close(server)
        try OwnedFiles.clearStaleSocket(path)
        #expect(HostProcess.status(of: path) == nil)
        let file = try directory.write("precious", to: "file")
        #expect(throws: ToolError.self) { try OwnedFiles.clearStaleSocket(file) }
        #expect(HostProcess.status(of: file) != nil)
    }
}

@Suite struct `Other processes` {
    @Test(arguments: [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 128 + 15)] as [(String, Int32)])
    func `tell how they ended`(script: String, code: Int32) async throws {
        #expect(await Spawn.exitCode(of: try Spawn.shell(script)) == code)
    }

    @Test func `do not inherit what we do about signals`() async throws {
        // The only one in all tests: it is meant once for a process.
        let signals = try StopSignals([SIGUSR2])
        // Heard from the first moment on.
        kill(getpid(), SIGUSR2)
        #expect(await signals.stream.first { _ in true } == SIGUSR2)
        // SIGPIPE is ignored here; a child that ignored it too would survive this.
        #expect(await Spawn.exitCode(of: try Spawn.shell("kill -PIPE $$; exit 0")) == 128 + SIGPIPE)
    }

    @Test func `that do not exist are an error`() {
        #expect(throws: ToolError.self) { try Spawn.start("/nonexistent/program", arguments: ["x"], isSession: false) }
    }

    @Test(arguments: [
        ("nbd://127.0.0.1:10809/a%20b", "a b", "nbd:127.0.0.1:10809:exportname=a b|10809|"),
        ("nbd://[::1]:7/", "", "nbd:[::1]:7|7|"),
        ("nbd+unix:///x'y?socket=/tmp/it%27s", "x'y", "nbd:unix:/tmp/it's:exportname=x'y||/tmp/it's"),
        ("", "e", "||"),
    ])
    func `get the address of the server in variables`(uri: String, exportName: String, expected: String) async throws {
        let directory = try TestDirectory()
        let path = "\(directory.path)/file"
        // From a child of the shell: the variables are exported, and nothing in them is obeyed.
        let command = "sh -c 'printf %s \"$uri~$exportname~$nbd|$port|$unixsocket\"' > \(path)"
        let process = try Spawn.shell(RunScript(uri: uri, exportName: exportName, command: command).text)
        #expect(await Spawn.exitCode(of: process) == 0)
        #expect(try String(decoding: HostProcess.contents(of: path, limit: 4096), as: UTF8.self) == "\(uri)~\(exportName)~\(expected)")
    }

    @Test func `have files that are read up to a limit`() throws {
        let directory = try TestDirectory()
        let path = try directory.write("12345", to: "file")
        #expect(try HostProcess.contents(of: path, limit: 5) == Array("12345".utf8))
        #expect(throws: ToolError.runtime("'\(path)' is larger than 4 bytes")) { try HostProcess.contents(of: path, limit: 4) }
        #expect(throws: ToolError.runtime("cannot open '/nonexistent': No such file or directory")) {
            try HostProcess.contents(of: "/nonexistent", limit: 4)
        }
    }
}

// Inside `TestDirectory` the name of its own function hides this.
private func systemBind(_ descriptor: Int32, _ address: UnsafePointer<sockaddr>, _ length: socklen_t) -> Int32 {
    // SAFETY: the caller passes an address that is valid during the call.
    unsafe bind(descriptor, address, length)
}
