/// What a check has found, in the words of qemu-img.
public struct CheckReport: Equatable, Sendable {
    /// References without the refcount or the place that they need: writing may destroy data.
    public internal(set) var corruptionCount: UInt64 = 0
    /// Clusters that nothing refers to and whose refcount says otherwise: lost space.
    public internal(set) var leakCount: UInt64 = 0
    /// Parts that could not be checked.
    public internal(set) var errorCount: UInt64 = 0
    public internal(set) var fixedCorruptionCount: UInt64 = 0
    public internal(set) var fixedLeakCount: UInt64 = 0
    /// Of the virtual disk.
    public internal(set) var clusterCount: UInt64 = 0
    public internal(set) var allocatedClusterCount: UInt64 = 0
    /// Allocated, and not behind the cluster before it in the file.
    public internal(set) var fragmentedClusterCount: UInt64 = 0
    public internal(set) var compressedClusterCount: UInt64 = 0
    /// Behind the last cluster in use, in the file.
    public internal(set) var imageEndOffset: UInt64 = 0
    /// One for each finding, at most `findingLimit`.
    public internal(set) var findings: [String] = []

    /// A damaged image can have a finding for each of its clusters.
    public static let findingLimit = 10_000

    public init() {}

    /// Tells of corrections that an earlier run made.
    public mutating func setFixed(leaks: UInt64, corruptions: UInt64) {
        fixedLeakCount = leaks
        fixedCorruptionCount = corruptions
    }

    mutating func note(_ finding: @autoclosure () -> String) {
        if findings.count < Self.findingLimit { findings.append(finding()) }
    }

    mutating func corruption(_ finding: @autoclosure () -> String) {
        corruptionCount += 1
        note("ERROR " + finding())
    }

    mutating func error(_ finding: @autoclosure () -> String) {
        errorCount += 1
        note("ERROR " + finding())
    }
}

/// What a check may change.
public enum RepairMode: String, Equatable, Sendable, CaseIterable {
    /// Free what nothing refers to.
    case leaks
    /// Everything that can be repaired.
    case all
}
