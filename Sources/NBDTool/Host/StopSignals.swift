import Dispatch
import Synchronization

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// SIGTERM and SIGINT (and SIGHUP, if asked for) as a stream; SIGPIPE is ignored (S-CLI-10), the peers of a server may vanish any time.
///
/// A handler that writes the signal's number to a pipe, and not a signal source of Dispatch: that one begins to listen some time after it was
/// resumed, and until then the signal, which must be ignored for it, is lost (measured: 1 of 60 SIGTERM on a busy machine).
final class StopSignals: Sendable {
    /// Every signal that arrives, in order.
    let stream: AsyncStream<Int32>

    /// Where handlers write to; one pipe for the process, which is never closed. -1: there is none yet.
    private static let writeEnd = Atomic<Int32>(-1)

    /// From now on these signals do not end the process.
    ///
    /// - Throws: `.runtime` when there are no descriptors left for a pipe.
    init(_ signals: [Int32]) throws(ToolError) {
        let (stream, continuation) = AsyncStream.makeStream(of: Int32.self)
        self.stream = stream
        let pipe = try HostProcess.makePipe()
        // A handler must not wait, and a full pipe says already that it is time to end.
        for descriptor in [pipe.read, pipe.write] { _ = fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK) }
        Self.writeEnd.store(pipe.write, ordering: .sequentiallyConsistent)
        let source = DispatchSource.makeReadSource(fileDescriptor: pipe.read, queue: .global())
        // A source lives as long as somebody holds it: here, as long as its own handler, which nobody cancels.
        source.setEventHandler {
            withExtendedLifetime(source) {
                for number in HostProcess.read(from: pipe.read, limit: 64) { continuation.yield(Int32(number)) }
            }
        }
        source.resume()
        _ = signal(SIGPIPE, SIG_IGN)
        for number in signals { _ = signal(number) { StopSignals.handle($0) } }
    }

    /// Runs on any thread in the middle of anything: no memory, no locks, and the interrupted code's `errno`.
    private static func handle(_ number: Int32) {
        let interrupted = errno
        HostProcess.writeByte(UInt8(truncatingIfNeeded: number), to: writeEnd.load(ordering: .sequentiallyConsistent))
        errno = interrupted
    }
}
