/// What a device is and can do. Constant for the life of the device: clients are told it once, when they connect.
public struct DeviceInfo: Equatable, Sendable {
    /// Exact size in bytes, at most 2^63 - 1 (S-LIM-14). Never rounded (S-EXP-06).
    public var byteCount: UInt64
    public var blockSize: BlockSize
    public var abilities: Abilities
    /// Every kind of write fails with `.readOnly`.
    public var isReadOnly: Bool
    /// The medium turns: nearby requests are cheaper than distant ones.
    public var isRotational: Bool
    /// A write that was answered is seen by every later read, whoever asks, and a flush covers everybody's writes. True of any device
    /// that has one copy of its data; the condition for NBD's CAN_MULTI_CONN (P-MC-01).
    public var isCoherent: Bool

    public init(
        byteCount: UInt64, blockSize: BlockSize = BlockSize(), abilities: Abilities = Abilities(), isReadOnly: Bool = false,
        isRotational: Bool = false, isCoherent: Bool = true
    ) {
        self.byteCount = byteCount
        self.blockSize = blockSize
        self.abilities = abilities
        self.isReadOnly = isReadOnly
        self.isRotational = isRotational
        self.isCoherent = isCoherent
    }
}

/// Sizes in bytes that a device asks its callers to respect (P-SIZE-01…03).
public struct BlockSize: Equatable, Sendable {
    /// Requests to the device are multiples of this: a power of two, 1…65536. Callers that cannot keep to it go through `Emulation`.
    public var minimum: UInt32
    /// Requests are fastest at multiples of this: a power of two, at least 512 and `minimum`.
    public var preferred: UInt32
    /// No read or write is longer than this: at least `preferred`, a multiple of `minimum`.
    public var maximum: UInt32

    /// - Precondition: the three obey the bounds above (they come from code, not from strangers).
    public init(minimum: UInt32 = 1, preferred: UInt32 = 4096, maximum: UInt32 = 32 << 20) {
        precondition(minimum.nonzeroBitCount == 1 && minimum <= 65536, "minimum block size \(minimum)")
        precondition(preferred.nonzeroBitCount == 1 && preferred >= max(512, minimum), "preferred block size \(preferred)")
        precondition(maximum >= preferred && maximum % minimum == 0, "maximum request size \(maximum)")
        self.minimum = minimum
        self.preferred = preferred
        self.maximum = maximum
    }
}

/// How well a device does something.
public enum Ability: Equatable, Sendable {
    /// Not at all: clients are not offered it.
    case none
    /// `Emulation` does it with other operations of the device.
    case emulated
    /// The device's own method does it.
    case native
}

/// The optional operations of a device. The defaults describe a device with nothing but `read` and `write`.
public struct Abilities: Equatable, Sendable {
    /// `flush()`. A device without it has nothing to lose: what is written is as durable as it will ever be.
    public var flush: Ability
    /// `WriteOptions.durable`. Emulated: write, then flush.
    public var durableWrites: Ability
    /// `writeZeroes`. Emulated: write buffers of zeroes.
    public var zeroes: Ability
    /// `WriteOptions.fast` on `writeZeroes`. Not native: `.unsupported` at once, nothing changed (P-CMD-ZERO-2).
    public var fastZeroes: Ability
    public var discard: Ability
    public var prefetch: Ability
    /// `status`. Not native: everything is data.
    public var status: Ability

    public init(
        flush: Ability = .none, durableWrites: Ability = .emulated, zeroes: Ability = .emulated, fastZeroes: Ability = .none,
        discard: Ability = .none, prefetch: Ability = .none, status: Ability = .none
    ) {
        self.flush = flush
        self.durableWrites = durableWrites
        self.zeroes = zeroes
        self.fastZeroes = fastZeroes
        self.discard = discard
        self.prefetch = prefetch
        self.status = status
    }

    /// Everything done by the device itself.
    public static let allNative = Abilities(
        flush: .native, durableWrites: .native, zeroes: .native, fastZeroes: .native, discard: .native, prefetch: .native, status: .native)
}

/// How a write is to be done.
public struct WriteOptions: OptionSet, Hashable, Sendable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Durable when the call returns (NBD: FUA).
    public static let durable = WriteOptions(rawValue: 1 << 0)
    /// `writeZeroes` only: may leave a hole instead of allocated zeroes (NBD: NO_HOLE is absent).
    public static let mayUnmap = WriteOptions(rawValue: 1 << 1)
    /// `writeZeroes` only: if this is not faster than writing zeroes, change nothing and throw `.unsupported` at once (NBD: FAST_ZERO).
    public static let fast = WriteOptions(rawValue: 1 << 2)
}
