import Glibc

/// A blocking socket that sends what no client library would, and waits at most five seconds for an answer.
final class RawSocket: Sendable {
    private let descriptor: CInt

    /// One that is connected already.
    init(descriptor: CInt) {
        self.descriptor = descriptor
        setLimits()
    }

    /// - Parameter path: a leading NUL makes it abstract.
    init(unix path: String) {
        descriptor = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8.prefix(107))) }
        setLimits()
        let length = path.utf8.first == 0 ? MemoryLayout<sa_family_t>.size + path.utf8.count : MemoryLayout<sockaddr_un>.size
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { connect(descriptor, $0, socklen_t(length)) }
        }
        precondition(result == 0, "cannot connect to \(path): \(String(cString: strerror(errno)))")
    }

    deinit { Glibc.close(descriptor) }

    private func setLimits() {
        var limit = timeval(tv_sec: 5, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }

    func send(_ bytes: [UInt8]) {
        var rest = bytes[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { Glibc.send(descriptor, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL)) }
            guard count > 0 else { return }
            rest = rest.dropFirst(count)
        }
    }

    /// Sends what fits without waiting; gives the number of bytes.
    func sendNow(_ bytes: [UInt8]) -> Int {
        bytes.withUnsafeBytes { Glibc.send(descriptor, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL | MSG_DONTWAIT)) }
    }

    /// Exactly this many bytes, or fewer when the server closes or says nothing for five seconds.
    func receive(_ count: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        var have = 0
        while have < count {
            let got = bytes.withUnsafeMutableBytes { recv(descriptor, $0.baseAddress! + have, count - have, 0) }
            guard got > 0 else { break }
            have += got
        }
        return Array(bytes.prefix(have))
    }

    /// Whether the server has closed, waiting at most five seconds for it. What comes before is thrown away.
    func isClosedByServer() -> Bool {
        var scratch = [UInt8](repeating: 0, count: 65536)
        while true {
            let got = recv(descriptor, &scratch, scratch.count, 0)
            if got == 0 { return true }
            if got < 0 { return errno == ECONNRESET }
        }
    }

    /// Says that nothing more will be sent.
    func finishSending() { shutdown(descriptor, CInt(SHUT_WR)) }

    /// Greeting read, modern flags sent, export chosen with EXPORT_NAME.
    static func transmission(unix path: String, export: String) -> RawSocket {
        let socket = RawSocket(unix: path)
        _ = socket.receive(18)
        socket.send([0, 0, 0, 3] + Array("IHAVEOPT".utf8) + [0, 0, 0, 1, 0, 0, 0, UInt8(export.utf8.count)] + Array(export.utf8))
        precondition(socket.receive(10).count == 10, "export \(export) refused")
        return socket
    }

    /// A compact request header.
    static func request(_ type: UInt16, cookie: UInt64 = 1, offset: UInt64 = 0, length: UInt32 = 0) -> [UInt8] {
        func bytes<T: FixedWidthInteger>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value.bigEndian, Array.init) }
        return bytes(UInt32(0x2560_9513)) + [0, 0] + bytes(type) + bytes(cookie) + bytes(offset) + bytes(length)
    }
}
