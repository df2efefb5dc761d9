internal import CHostIO
internal import Synchronization

/// A whole file, mapped for reading, so that its pages can be sent from where they are; and what is known of which pages are in memory.
///
/// Nobody reads the mapping in user code: only the kernel does, while it sends. A page that cannot be read (the file was made shorter, the
/// disk failed) is then an EFAULT of that call, where code of ours would die of SIGBUS. A page that is merely not in memory would be waited
/// for, with everybody else of the loop: so only pages that are known to be there are sent, and all of that is forgotten when a thread
/// notices that it has waited (`HostLoop`). Facts are learnt when a read or write that never waits has succeeded, and, once for each granule,
/// from the kernel (mincore), where it tells: else each page of a large file would have to be copied once before it is sent from here.
// SAFETY: the regions are mapped in `init` with the lengths that are kept, and unmapped in `deinit`. `known` is touched by atomic
// operations alone; that the kernel zeroes it meanwhile (`forget`) is as good as any other order. `address` is never read.
@safe struct FileMapping: ~Copyable, @unchecked Sendable {
    static let pageByteCount: UInt64 = 4096

    /// What the kernel is asked about at a time; 8 words of `known`.
    private static let granuleByteCount: UInt64 = 512 * pageByteCount

    private let descriptor: Int32
    private let address: UnsafeRawPointer
    let byteCount: UInt64
    /// One bit for each page; behind them, from `askedIndex` on, one for each granule that the kernel was asked about, from `enteredIndex` on one
    /// for each whose pages were entered into the page table, and from `passedIndex` on one for each that was sent by reference.
    private let known: UnsafeMutablePointer<UInt64>
    private let knownByteCount: Int
    private let askedIndex: Int
    private let enteredIndex: Int
    private let passedIndex: Int
    private let isTrusted: Atomic<Bool>

    /// Nil when there is nothing to map, or the file lies where its mapping may not show what others write: on the network, or behind a
    /// program.
    ///
    /// - Parameter isLocal: a disk of this host, or on a file system of its own (`FileSystem`).
    init?(_ descriptor: Int32, byteCount: UInt64, isLocal: Bool) {
        guard byteCount > 0, byteCount <= 1 << 46, isLocal else { return nil }
        let granuleCount = Int((byteCount - 1) / Self.granuleByteCount) + 1
        let wordCount = granuleCount / 64 + 1
        let askedIndex = granuleCount * 8
        let enteredIndex = askedIndex + wordCount
        let passedIndex = enteredIndex + wordCount
        let knownByteCount = (passedIndex + wordCount) * 8
        guard let known = unsafe chostio_zeroes(knownByteCount) else { return nil }
        guard let address = unsafe chostio_map(descriptor, Int(byteCount)) else {
            _ = unsafe chostio_unmap(known, knownByteCount)
            return nil
        }
        self.descriptor = descriptor
        self.byteCount = byteCount
        unsafe self.address = address
        unsafe self.known = known
        self.knownByteCount = knownByteCount
        self.askedIndex = askedIndex
        self.enteredIndex = enteredIndex
        self.passedIndex = passedIndex
        isTrusted = Atomic(true)
    }

    deinit {
        _ = unsafe chostio_unmap(address, Int(byteCount))
        _ = unsafe chostio_unmap(known, knownByteCount)
    }

    /// Whether all pages of a range are known to be in memory. False for a range that does not lie in the file.
    func isAtHand(_ offset: UInt64, _ count: Int) -> Bool {
        guard count > 0, contains(offset, count) else { return false }
        return unsafe forEachWord(offset, count) { word, bits in unsafe chostio_bits(word) & bits == bits }
    }

    /// The pages of a range of the file are in memory.
    func learn(_ offset: UInt64, _ count: Int) {
        guard count > 0, offset < byteCount else { return }
        _ = unsafe forEachWord(offset, Int(min(UInt64(count), byteCount - offset))) { word, bits in
            if unsafe chostio_bits(word) & bits != bits { unsafe chostio_set_bits(word, bits) }
            return true
        }
    }

    /// Asks the kernel which pages around a range of the file are in memory, if it was not asked before. Returns whether all of the range is.
    func ask(_ offset: UInt64, _ count: Int) -> Bool {
        guard isTrusted.load(ordering: .relaxed), count > 0, contains(offset, count) else { return false }
        var isNews = false
        forEachNewGranule(offset, count, askedIndex) { start, count in
            learnFromKernel(start, count)
            isNews = true
        }
        return isNews && isAtHand(offset, count)
    }

    /// A range will be sent from the mapping, now or perhaps later: enters all pages around it at once, if all are in memory, where the kernel
    /// would have a fault for every 16.
    func enter(_ offset: UInt64, _ count: Int) {
        forEachNewGranule(offset, count, enteredIndex) { start, count in
            if isAtHand(start, count) { unsafe chostio_populate(address + Int(start), count) }
        }
    }

    /// A range will be sent, but not from the mapping. What is sent for the second time may be sent more often, and then it shall cost no more from
    /// the mapping. A granule counts as sent with its first byte.
    func pass(_ offset: UInt64, _ count: Int) {
        let start = (offset + Self.granuleByteCount - 1) / Self.granuleByteCount * Self.granuleByteCount
        guard start < offset + UInt64(count) else { return }
        let rest = Int(offset + UInt64(count) - start)
        var isNew = false
        forEachNewGranule(start, rest, passedIndex) { _, _ in isNew = true }
        if !isNew { enter(start, rest) }
    }

    /// Whether the pages around a byte were entered, as far as they were in memory.
    func isEntered(_ offset: UInt64) -> Bool {
        let place = unsafe granuleBit(Int(offset / Self.granuleByteCount), enteredIndex)
        return unsafe chostio_bits(place.word) & place.bit != 0
    }

    /// The bit of a granule, of those that begin at word `index`.
    @inline(__always)
    private func granuleBit(_ granule: Int, _ index: Int) -> (word: UnsafeMutablePointer<UInt64>, bit: UInt64) {
        unsafe (known + (index + granule >> 6), 1 << UInt64(granule & 63))
    }

    /// Where those lie whose bit from word `index` on was not set. It is now.
    @inline(__always)
    private func forEachNewGranule(_ offset: UInt64, _ count: Int, _ index: Int, _ body: (_ start: UInt64, _ count: Int) -> Void) {
        for granule in Int(offset / Self.granuleByteCount)...Int((offset + UInt64(count) - 1) / Self.granuleByteCount) {
            let (word, bit) = unsafe granuleBit(granule, index)
            guard unsafe chostio_bits(word) & bit == 0 else { continue }
            unsafe chostio_set_bits(word, bit)
            let start = UInt64(granule) * Self.granuleByteCount
            body(start, Int(min(Self.granuleByteCount, byteCount - start)))
        }
    }

    /// Of one granule.
    private func learnFromKernel(_ start: UInt64, _ count: Int) {
        let word = Int(start / Self.pageByteCount) >> 6
        unsafe withUnsafeTemporaryAllocation(of: UInt64.self, capacity: 8) { bits in
            guard let first = bits.baseAddress, unsafe chostio_resident(descriptor, address + Int(start), count, first) == 0 else { return }
            for index in bits.indices where unsafe bits[index] != 0 { unsafe chostio_set_bits(known + (word + index), bits[index]) }
        }
    }

    /// Pages have left the memory; nothing is known any more.
    func forget() {
        _ = unsafe chostio_zeroes_again(known, knownByteCount)
    }

    /// The kernel called pages present that it could not send: of a file that was made shorter, it keeps more than there is. It is not asked
    /// again.
    func distrust() {
        isTrusted.store(false, ordering: .relaxed)
        forget()
    }

    /// From now on nothing can be sent from here, also by those who are about to.
    func retire() {
        forget()
        _ = unsafe chostio_map_retire(address, Int(byteCount))
    }

    /// Whether a range, which may be empty, lies in the file.
    func contains(_ offset: UInt64, _ count: Int) -> Bool { offset <= byteCount && UInt64(count) <= byteCount - offset }

    /// Where a byte of the file lies, for the kernel.
    @unsafe func address(_ offset: UInt64) -> UnsafeRawPointer { unsafe address + Int(offset) }

    /// - Precondition: the range lies in the file.
    @inline(__always)
    private func forEachWord(_ offset: UInt64, _ count: Int, _ body: (UnsafeMutablePointer<UInt64>, UInt64) -> Bool) -> Bool {
        var page = Int(offset / Self.pageByteCount)
        let last = Int((offset + UInt64(count) - 1) / Self.pageByteCount)
        while page <= last {
            let first = page & 63
            let length = min(64 - first, last - page + 1)
            let bits = (length == 64 ? UInt64.max : (1 << UInt64(length)) - 1) << UInt64(first)
            guard unsafe body(known + (page >> 6), bits) else { return false }
            page += length
        }
        return true
    }
}

/// The type of the file system that holds a file (`f_type`, statfs(2)); one that is not known is neither.
struct FileSystem {
    let rawValue: UInt64

    /// Keeps its data in memory only, so that no call ever waits for a disk: tmpfs, ramfs.
    var isInMemory: Bool { rawValue == 0x0102_1994 || rawValue == 0x8584_58F6 }

    /// Nobody but this host writes to it: the former, ext2–4, XFS, Btrfs, F2FS, overlayfs.
    var isLocal: Bool { isInMemory || [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0x794C_7630].contains(rawValue) }
}
