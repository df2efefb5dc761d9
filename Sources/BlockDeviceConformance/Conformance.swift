public import Block
public import Testing

/// What a device does not promise, where the contract allows that.
public struct ConformanceTraits: OptionSet, Sendable {
    public let rawValue: Int
    public init(rawValue: Int) { self.rawValue = rawValue }

    /// Writes succeed and leave no trace, as on `NullDevice`: contents are not compared after them.
    public static let forgetsWrites = ConformanceTraits(rawValue: 1 << 0)
}

/// Checks the laws of `BlockDevice` on a device, and again through `Emulation`. Each broken law is recorded as an issue of the running test.
///
///     @Test func `My disk obeys the laws of a device`() async throws {
///         try await checkConformance { try await MyDisk(byteCount: 1 << 20) }
///     }
///
/// Overwrites the device. Looks at its first and last 256 KiB, so a small device is enough, and a big one costs no more.
///
/// - Parameters:
///   - seed: of the random requests; nil for `SEED` of the environment, or a new one. Every issue names it.
///   - steps: random requests on each of the two faces.
///   - makeDevice: opens the device; called once or more, with the previous one closed.
public func checkConformance(
    _ traits: ConformanceTraits = [], seed: UInt64? = nil, steps: Int = 300, sourceLocation: SourceLocation = #_sourceLocation,
    of makeDevice: () async throws -> any BlockDevice
) async throws {
    let seed = seed ?? SeededRandom.seed
    for isEmulated in [false, true] {
        let device = try await makeDevice()
        let subject = isEmulated ? Emulation(device) : device
        let laws = Laws(subject, traits, seed: seed, steps: steps, isEmulated: isEmulated, sourceLocation)
        do {
            try await laws.check()
        } catch is BrokenLaw {
            // Recorded where it was found. What follows would only repeat it.
        }
        await subject.close()
    }
}

/// Thrown after an issue was recorded, to end the check.
struct BrokenLaw: Error {}

/// One run over one device.
final class Laws {
    let device: any BlockDevice
    let traits: ConformanceTraits
    let isEmulated: Bool
    let steps: Int
    private let seed: UInt64
    private let sourceLocation: SourceLocation
    var random: SeededRandom

    /// Bytes at each end of the device that are looked at.
    static let windowByteCount: UInt64 = 256 << 10

    init(
        _ device: any BlockDevice, _ traits: ConformanceTraits, seed: UInt64, steps: Int, isEmulated: Bool,
        _ sourceLocation: SourceLocation
    ) {
        self.device = device
        self.traits = traits
        self.seed = seed
        self.steps = steps
        self.isEmulated = isEmulated
        self.sourceLocation = sourceLocation
        random = SeededRandom(seed: seed)
    }

    var info: DeviceInfo { device.info }
    var minimum: UInt64 { UInt64(info.blockSize.minimum) }
    var keepsWrites: Bool { !traits.contains(.forgetsWrites) }

    func check() async throws {
        try checkInfo()
        try await checkBoundaries()
        if info.isReadOnly {
            try await checkReadOnly()
        } else {
            try await checkZeroes()
            try await checkConcurrentWrites()
        }
        for window in windows {
            let model = try await Model(of: self, window)
            try await model.run(steps)
        }
        if isEmulated { try await checkRefusals() }
    }

    /// The parts of the device that are looked at: one when it is small, otherwise its beginning and its end.
    private var windows: [ByteRange] {
        let size = info.byteCount
        let count = min(size, Self.windowByteCount)
        let first = ByteRange(start: 0, count: count, within: size)
        let last = ByteRange(start: (size - count) & ~(minimum - 1), count: size - ((size - count) & ~(minimum - 1)), within: size)
        return [first, size > Self.windowByteCount ? last : nil].compactMap(\.self)
    }

    /// Records an issue and ends the check unless `condition` holds.
    func law(_ condition: Bool, _ text: @autoclosure () -> String) throws {
        guard !condition else { return }
        let face = isEmulated ? "through Emulation" : "directly"
        Issue.record("\(text()) (\(type(of: device)) used \(face); SEED=\(seed))", sourceLocation: sourceLocation)
        throw BrokenLaw()
    }

    /// Runs `body`; an error is a broken law.
    func must<Result>(_ what: @autoclosure () -> String, _ body: () async throws -> Result) async throws -> Result {
        do {
            return try await body()
        } catch let error as BlockError {
            try law(false, "\(what()) failed: \(error.kind), \(error.detail)")
            throw error
        }
    }

    /// Runs `body`, which must fail in one of the ways of `kinds`.
    func refused(_ what: String, as kinds: BlockError.Kind..., by body: () async throws -> Void) async throws {
        do {
            try await body()
        } catch let error as BlockError {
            return try law(kinds.contains(error.kind), "\(what): failed as \(error.kind), not as \(kinds)")
        }
        try law(false, "\(what) was not refused")
    }
}
