/// A fixed number of plain values, one owner, no counting of references: what a loop of a million rounds a second may touch.
// SAFETY: the memory is allocated and filled once and freed in `deinit`; every index is checked.
@safe struct BenchTable<Element: BitwiseCopyable>: ~Copyable {
    let count: Int
    private let start: UnsafeMutablePointer<Element>

    init(repeating value: Element, count: Int) {
        self.count = count
        unsafe start = .allocate(capacity: count)
        unsafe start.initialize(repeating: value, count: count)
    }

    deinit { unsafe start.deallocate() }

    subscript(index: Int) -> Element {
        get {
            precondition(index >= 0 && index < count)
            return unsafe start[index]
        }
        set {
            precondition(index >= 0 && index < count)
            unsafe start[index] = newValue
        }
    }
}

/// Last in, first out, and never more than there was room for at the beginning.
struct BenchStack: ~Copyable {
    private var items: BenchTable<UInt16>
    private(set) var count = 0

    init(capacity: Int) { items = BenchTable(repeating: 0, count: capacity) }

    @inline(__always)
    mutating func push(_ item: Int) {
        items[count] = UInt16(truncatingIfNeeded: item)
        count += 1
    }

    @inline(__always)
    mutating func pop() -> Int? {
        guard count > 0 else { return nil }
        count -= 1
        return Int(items[count])
    }
}
