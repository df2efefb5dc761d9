import Dispatch

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// SIGTERM and SIGINT (and SIGHUP, if asked for) as a stream; SIGPIPE is ignored (S-CLI-10), the peers of a server may vanish any time.
final class StopSignals: Sendable {
    /// Every signal that arrives, in order.
    let stream: AsyncStream<Int32>

    /// From now on these signals do not end the process.
    init(_ signals: [Int32]) {
        let (stream, continuation) = AsyncStream.makeStream(of: Int32.self)
        self.stream = stream
        _ = signal(SIGPIPE, SIG_IGN)
        for number in signals {
            // Otherwise the default action ends the process before the source hears of it.
            _ = signal(number, SIG_IGN)
            let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
            source.setEventHandler { withExtendedLifetime(source) { _ = continuation.yield(number) } }
            source.resume()
            // A source lives as long as somebody holds it: here, as long as its own handler, which nobody cancels.
        }
    }
}
