internal import CHostIO
internal import Synchronization
internal import SystemPackage

extension HostFile {
    /// Bytes now: what `resize` made it, and at least where the last write ended. Of files that may be resized; constant for others.
    public var currentByteCount: UInt64 { state.byteCount.load(ordering: .acquiring) }

    /// Makes the file longer, with a hole, or shorter. No write that reaches behind the smaller size may run meanwhile.
    ///
    /// - Throws: ENOTSUP for a file that was not opened with `isGrowable`; ENOSPC for a disk that has not as many bytes. A disk that has
    ///   more keeps its size.
    public func resize(to byteCount: UInt64) async throws(HostError) {
        if kind == .blockDevice {
            guard byteCount <= self.byteCount else { throw HostError(.noSpace, "resize", path: path) }
            return
        }
        guard isGrowable, !isReadOnly else { throw HostError(.notSupported, "resize", path: path) }
        try checkNothingLost("resize")
        // Pages behind the end must not be sent from the mapping.
        if byteCount < currentByteCount { mapping?.forget() }
        let result = await io.call { PositionalIO.retrying { chostio_truncate(self.descriptor, byteCount) } }
        guard result >= 0 else { throw error(result, "resize") }
        state.byteCount.store(byteCount, ordering: .releasing)
    }

    /// A write has ended at `end`: the file is at least as long.
    func noteEnd(_ end: UInt64) {
        guard isGrowable, state.byteCount.load(ordering: .relaxed) < end else { return }
        var known = state.byteCount.load(ordering: .relaxed)
        while known < end {
            let (exchanged, original) = state.byteCount.weakCompareExchange(expected: known, desired: end, ordering: .acquiringAndReleasing)
            if exchanged { return }
            known = original
        }
    }

    /// The length of the mapping of a file that may grow: address space, and no memory. Behind its end the file is read and written as files
    /// without a mapping are.
    static func mappedByteCount(_ byteCount: UInt64) -> UInt64 {
        guard byteCount > 0 else { return 64 << 30 }
        return max(64 << 30, byteCount < 1 << 45 ? byteCount * 2 : byteCount)
    }
}
