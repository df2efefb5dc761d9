#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Times of day as tables show them.
enum CalendarTime {
    /// Since the Epoch, as the host's clock has it.
    static var now: (seconds: UInt32, nanoseconds: UInt32) {
        // SAFETY: two numbers, which the call fills.
        var time = timespec()
        unsafe clock_gettime(CLOCK_REALTIME, &time)
        return (UInt32(truncatingIfNeeded: time.tv_sec), UInt32(truncatingIfNeeded: time.tv_nsec))
    }

    /// `2026-11-26 13:10:14`, in the zone of the host.
    static func text(ofEpochSeconds seconds: UInt32) -> String {
        var time = time_t(seconds)
        // SAFETY: numbers and a name of a time zone that is not read; the call fills it from values of this frame and forgets them.
        var parts = unsafe tm()
        guard unsafe localtime_r(&time, &parts) != nil else { return "\(seconds)" }
        func two(_ value: Int32) -> String { value < 10 ? "0\(value)" : "\(value)" }
        // SAFETY: only numbers are read.
        let date = unsafe "\(1900 + parts.tm_year)-\(two(parts.tm_mon + 1))-\(two(parts.tm_mday))"
        return unsafe "\(date) \(two(parts.tm_hour)):\(two(parts.tm_min)):\(two(parts.tm_sec))"
    }
}
