import CSockets
import NIOCore

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Lets one thread wait for clients, for a time and for a call of `wake` at once: `poll`, and a pipe to itself.
final class SocketWaiter: Sendable {
    private let bell: CInt
    private let button: CInt

    init() throws(IOError) {
        var ends: [CInt] = [-1, -1]
        // SAFETY: the array has room for two descriptors.
        let result = unsafe csockets_pipe(&ends)
        guard result == 0 else { throw IOError(errnoCode: -result, reason: "pipe") }
        (bell, button) = (ends[0], ends[1])
    }

    deinit {
        ListeningSocket.close(bell)
        ListeningSocket.close(button)
    }

    /// Ends the wait that is on, or the next one. From any thread. A full pipe will do it as well; both ends live as long as this object, so
    /// there is no SIGPIPE.
    func wake() {
        var byte: UInt8 = 0
        // SAFETY: the pointer to one byte is valid during the call.
        _ = unsafe write(button, &byte, 1)
    }

    /// Waits until somebody wants something at one of the sockets, the time is over, `wake` is called, or a signal comes.
    ///
    /// - Parameters:
    ///   - sockets: descriptors; nil takes a place and is not looked at.
    ///   - time: nil: for ever.
    /// - Returns: the indices of the sockets that are ready, or in a state that the next call on them will tell.
    func wait(for sockets: [CInt?], atMost time: Duration?) -> [Int] {
        // The system leaves out negative descriptors.
        var entries = ([bell] + sockets.map { $0 ?? -1 }).map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
        // In milliseconds, rounded up: too early would be for nothing.
        let limit = time.map { CInt(clamping: Int((max($0, .zero) / .milliseconds(1)).rounded(.up))) } ?? -1
        // SAFETY: the array is valid during the call, and its own count is passed.
        let count = unsafe poll(&entries, nfds_t(entries.count), limit)
        // For want of memory: the next call would fail as fast.
        if count < 0, errno != EINTR { _ = poll(nil, 0, 100) }
        guard count > 0 else { return [] }
        if entries[0].revents != 0 { drain() }
        return sockets.indices.filter { entries[$0 + 1].revents != 0 }
    }

    private func drain() {
        var bytes: [UInt8] = Array(repeating: 0, count: 256)
        // SAFETY: the array is valid during the call, and its own count is passed. What is left rings the bell again.
        _ = unsafe read(bell, &bytes, bytes.count)
    }
}
