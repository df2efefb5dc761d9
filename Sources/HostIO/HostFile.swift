public final class HostFile: Sendable {}
extension HostFile { public func writeNow(at: UInt64, from: RawSpan) -> Bool { false } }
