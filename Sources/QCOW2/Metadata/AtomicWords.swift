internal import Synchronization

/// A table of 64-bit words that event loops read while somebody changes it: each word is whole, old or new.
///
/// All accesses are sequentially consistent. `Quarantine` relies on that: a mapper says that it is at work and then looks a word up; who
/// frees a cluster changes the word and then asks who is at work. One of the two sees the other.
// SAFETY: the memory belongs to the object, and is reached through the checked accesses below alone.
@safe final class AtomicWords: Sendable {
    let count: Int
    // SAFETY: never changed after `init`; what it points at are atomics.
    private nonisolated(unsafe) let words: UnsafeMutablePointer<Atomic<UInt64>>

    /// The words behind the end of `values` are 0.
    init(_ values: some Sequence<UInt64>, count: Int) {
        self.count = count
        // SAFETY: freed in `deinit`.
        unsafe words = UnsafeMutablePointer<Atomic<UInt64>>.allocate(capacity: max(count, 1))
        var index = 0
        for value in values where index < count {
            // SAFETY: below `count`, and each place is initialized once: here or in the loop that follows.
            unsafe (words + index).initialize(to: Atomic(value))
            index += 1
        }
        while index < count {
            // SAFETY: as above.
            unsafe (words + index).initialize(to: Atomic(0))
            index += 1
        }
    }

    deinit {
        // SAFETY: `count` words were initialized, and nobody has a reference any more.
        unsafe words.deinitialize(count: count)
        unsafe words.deallocate()
    }

    @inline(__always) subscript(index: Int) -> UInt64 {
        precondition(index >= 0 && index < count)
        // SAFETY: in bounds (above), and initialized for as long as the object lives.
        return unsafe words[index].load(ordering: .sequentiallyConsistent)
    }

    func store(_ value: UInt64, at index: Int) {
        precondition(index >= 0 && index < count)
        // SAFETY: as above.
        unsafe words[index].store(value, ordering: .sequentiallyConsistent)
    }
}
