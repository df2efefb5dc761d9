import Dispatch

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Where the signal handler writes. Constant once the handlers are installed; -1: nowhere.
// SAFETY: written once, before the first handler that reads it is installed.
nonisolated(unsafe) private var pipeEnd: Int32 = -1

/// SIGTERM and SIGINT (and SIGHUP, if asked for) as a stream; SIGPIPE is ignored (S-CLI-10), the peers of a server may vanish any time.
///
/// The handler writes one byte into a pipe, so a signal is kept from the moment it is caught, however long it takes until somebody listens.
/// (A dispatch source alone loses what arrives between the moment it is made and the moment its thread has registered it.)
final class StopSignals: Sendable {
    /// Every signal that arrives, in order.
    let stream: AsyncStream<Int32>

    /// From now on these signals do not end the process. At most once in a process.
    init(_ signals: [Int32]) {
        let (stream, continuation) = AsyncStream.makeStream(of: Int32.self)
        self.stream = stream
        _ = signal(SIGPIPE, SIG_IGN)
        var ends: [Int32] = [-1, -1]
        // SAFETY: room for the two descriptors; pipe writes no more.
        guard unsafe pipe(&ends) == 0 else { return }  // without a pipe the default action is what remains
        for end in ends {
            _ = fcntl(end, F_SETFD, FD_CLOEXEC)
            _ = fcntl(end, F_SETFL, O_NONBLOCK)  // a full pipe holds enough signals
        }
        unsafe pipeEnd = ends[1]
        let readEnd = ends[0]
        let source = DispatchSource.makeReadSource(fileDescriptor: readEnd, queue: .global())
        source.setEventHandler {
            withExtendedLifetime(source) {
                var number: UInt8 = 0
                // SAFETY: one byte into a variable of one byte.
                while unsafe read(readEnd, &number, 1) == 1 { continuation.yield(Int32(number)) }
            }
        }
        source.resume()
        // The source lives as long as its own handler, which nobody cancels.
        for number in signals {
            _ = signal(number) { number in
                let saved = errno
                var byte = UInt8(truncatingIfNeeded: number)
                // SAFETY: only what is allowed in a signal handler: a global that is set, a write of one byte of ours, errno put back.
                _ = unsafe write(pipeEnd, &byte, 1)
                errno = saved
            }
        }
    }
}
