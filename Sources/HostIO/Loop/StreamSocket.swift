internal import CHostIO
internal import SystemPackage

/// One end of a connection, for calls that never wait.
public final class StreamSocket: Sendable {
    /// What came of a transfer.
    public enum Outcome: Equatable, Sendable {
        case bytes(Int)
        /// Not now.
        case wouldBlock
        /// The peer has closed its side (receiving only).
        case ended
        /// The connection is of no use any more.
        case failed(HostError)
    }

    let descriptor: Int32
    /// A Unix socket.
    public let isLocal: Bool

    /// A second hold on a socket that somebody else will close.
    ///
    /// - Throws: when the process has no descriptor left.
    public init(duplicating descriptor: Int32) throws(HostError) {
        let result = chostio_duplicate(descriptor)
        guard result >= 0 else { throw HostError(Errno(rawValue: -result), "duplicate a socket") }
        self.descriptor = result
        isLocal = chostio_is_local(result) == 1
        // A refusal only means less room.
        _ = isLocal ? chostio_send_room(result, Self.roomByteCount) : chostio_receive_room_within_host(result, Self.roomByteCount)
    }

    /// Bytes under way within this host, so that sender and receiver work at the same time. The kernel may give less.
    private static let roomByteCount: Int32 = 1 << 20

    deinit {
        _ = chostio_close(descriptor)
    }

    /// Appends to `output` at most `limit` bytes that have arrived.
    public func receive(into output: inout OutputRawSpan, limit: Int) -> Outcome {
        // SAFETY: at most the free room is given to the kernel, which has initialised exactly the bytes that are then counted.
        let result = unsafe output.withUnsafeMutableBytes { (bytes: UnsafeMutableRawBufferPointer, initialized: inout Int) -> Int in
            let room = min(limit, bytes.count - initialized)
            guard room > 0, let base = bytes.baseAddress else { return -Int(Errno.wouldBlock.rawValue) }
            let result = Int(unsafe chostio_receive(descriptor, base + initialized, room))
            if result > 0 { initialized += result }
            return result
        }
        return result == 0 ? .ended : outcome(result, "receive")
    }

    /// Sends what fits of the list.
    public func send(_ list: inout GatherList) -> Outcome {
        guard list.byteCount > 0 else { return .bytes(0) }
        return outcome(list.send(on: descriptor), "send")
    }

    private func outcome(_ result: Int, _ operation: String) -> Outcome {
        guard result < 0 else { return .bytes(result) }
        let code = Errno(rawValue: CInt(-result))
        return code == .wouldBlock || code == .interrupted ? .wouldBlock : .failed(HostError(code, operation))
    }
}
