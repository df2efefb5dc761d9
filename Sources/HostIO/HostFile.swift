public final class HostFile: Sendable {}
