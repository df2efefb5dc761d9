internal import Synchronization

/// Up to 2^60 bits, in memory only where some are set. Setting and reading take no lock.
///
///     branch   512 children of 2^15, 2^24, 2^33 … bits each: "all set" (a bit in `whole`), absent (all clear), or a node
///     leaf     32,768 bits
///
/// When nodes run out, a child is said to be all set: for a dirty bitmap too much is slow, and too little a lost backup.
final class BitTree: Sendable {
    private let root: BitNode
    private let budget: NodeBudget

    /// - Parameter nodeLimit: nodes of some 4 KiB besides the root.
    init(bitCount: UInt64, nodeLimit: Int) {
        precondition(bitCount <= 1 << 60, "\(bitCount) bits")
        budget = NodeBudget(limit: nodeLimit)
        var shift = BitLeaf.shift
        while shift < 60, bitCount > 1 << shift { shift += BitBranch.fanShift }
        root = shift == BitLeaf.shift ? BitLeaf() : BitBranch(childShift: shift - BitBranch.fanShift, budget)
    }

    /// Sets `first ... last`.
    func set(_ first: UInt64, through last: UInt64) { root.set(first, last) }

    /// The first bit from `bit` on that is `value`; nil when there is none. It may lie behind those that the tree was made for.
    func first(_ value: Bool, from bit: UInt64) -> UInt64? { root.first(value, from: bit) }

    /// How many of `first ... last` are set.
    func count(_ first: UInt64, through last: UInt64) -> UInt64 { root.count(first, last) }

    /// Clears all bits. One that is set meanwhile may be clear afterwards. Nodes stay.
    func clear() { root.clear() }

    /// Nodes that exist, of some 4 KiB each.
    var nodeCount: Int { budget.taken.load(ordering: .relaxed) + 1 }
}

/// Memory for nodes.
private final class NodeBudget: Sendable {
    private let limit: Int
    let taken = Atomic<Int>(0)

    init(limit: Int) { self.limit = limit }

    func take() -> Bool {
        if taken.wrappingAdd(1, ordering: .relaxed).newValue <= limit { return true }
        giveBack()
        return false
    }

    func giveBack() { taken.wrappingSubtract(1, ordering: .relaxed) }
}

/// Bits are counted from the node's first one.
// SAFETY: `@unchecked Sendable`, here and below: nodes have constants and atomics alone.
private class BitNode: @unchecked Sendable {
    func set(_ first: UInt64, _ last: UInt64) {}
    func first(_ value: Bool, from bit: UInt64) -> UInt64? { nil }
    func count(_ first: UInt64, _ last: UInt64) -> UInt64 { 0 }
    func clear() {}
}

// SAFETY: see `BitNode`.
private final class BitLeaf: BitNode, @unchecked Sendable {
    static let shift: UInt64 = 15
    private let words = AtomicWords(count: 1 << 9)

    override func set(_ first: UInt64, _ last: UInt64) { words.set(bits: Int(first), through: Int(last)) }

    override func first(_ value: Bool, from bit: UInt64) -> UInt64? { words.first(value, from: Int(bit)).map(UInt64.init) }

    override func count(_ first: UInt64, _ last: UInt64) -> UInt64 { words.count(bits: Int(first), through: Int(last)) }

    override func clear() { words.clear() }
}

// SAFETY: `children` is allocated and initialised in `init` for 512 elements and freed in `deinit`; indexes are bits shifted by
// `childShift`, which `index(of:)` checks. What is shared is atomic.
@safe private final class BitBranch: BitNode, @unchecked Sendable {
    static let fanShift: UInt64 = 9
    private static let fan = 1 << Int(fanShift)

    /// Bits of a child, as a power of two.
    private let childShift: UInt64
    private let budget: NodeBudget
    /// Children all of whose bits are set, whatever the nodes say.
    private let whole = AtomicWords(count: BitBranch.fan / 64)
    private let children: UnsafeMutablePointer<AtomicLazyReference<BitNode>>

    init(childShift: UInt64, _ budget: NodeBudget) {
        self.childShift = childShift
        self.budget = budget
        unsafe children = .allocate(capacity: Self.fan)
        for index in 0..<Self.fan { unsafe (children + index).initialize(to: AtomicLazyReference()) }
    }

    deinit {
        unsafe children.deinitialize(count: Self.fan)
        unsafe children.deallocate()
    }

    private func index(of bit: UInt64) -> Int {
        let index = bit >> childShift
        precondition(index < UInt64(Self.fan), "bit \(bit) of a node of \(Self.fan) times 2^\(childShift)")
        return Int(index)
    }

    private func child(_ index: Int) -> BitNode? { unsafe children[index].load() }

    private func makeChild(_ index: Int) -> BitNode? {
        guard budget.take() else { return nil }
        let node: BitNode = childShift == BitLeaf.shift ? BitLeaf() : BitBranch(childShift: childShift - Self.fanShift, budget)
        let winner = unsafe children[index].storeIfNil(node)
        if winner !== node { budget.giveBack() }
        return winner
    }

    /// The part of `first ... last` in a child, counted from the child's first bit.
    private func part(_ first: UInt64, _ last: UInt64, in index: Int) -> (first: UInt64, last: UInt64) {
        let start = UInt64(index) << childShift
        return (max(first, start) - start, min(last - start, (1 << childShift) - 1))
    }

    override func set(_ first: UInt64, _ last: UInt64) {
        for index in index(of: first)...index(of: last) where !whole.contains(bit: index) {
            let part = part(first, last, in: index)
            if part.first == 0, part.last == (1 << childShift) - 1 {
                whole.set(bit: index)
            } else if let node = child(index) ?? makeChild(index) {
                node.set(part.first, part.last)
            } else {
                whole.set(bit: index)
            }
        }
    }

    override func first(_ value: Bool, from bit: UInt64) -> UInt64? {
        var from = bit
        for index in index(of: bit)..<Self.fan {
            let start = UInt64(index) << childShift
            from = max(from, start)
            if whole.contains(bit: index) {
                if value { return from }
            } else if let node = child(index) {
                if let found = node.first(value, from: from - start) { return start + found }
            } else if !value {
                return from
            }
        }
        return nil
    }

    override func count(_ first: UInt64, _ last: UInt64) -> UInt64 {
        var sum: UInt64 = 0
        for index in index(of: first)...index(of: last) {
            let part = part(first, last, in: index)
            sum += whole.contains(bit: index) ? part.last - part.first + 1 : child(index)?.count(part.first, part.last) ?? 0
        }
        return sum
    }

    override func clear() {
        // Nodes first: a bit that a reader sees through `whole` is set until the end.
        for index in 0..<Self.fan { child(index)?.clear() }
        whole.clear()
    }
}
