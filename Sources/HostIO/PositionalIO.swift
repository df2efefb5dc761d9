internal import CHostIO
internal import SystemPackage

/// Whole transfers out of the kernel's partial ones. Synchronous: these wait for the disk, so they run on the pool's threads.
enum PositionalIO {
    /// Reads until `memory` is full or the file ends. Returns the bytes read, or a negated errno.
    static func read(_ descriptor: Int32, into memory: BorrowedMemory, at offset: UInt64) -> Int {
        var done = 0
        while done < memory.count {
            // SAFETY: `done ..< memory.count` lies inside the lent memory.
            let result = unsafe chostio_pread(descriptor, memory.address(done), memory.count - done, offset + UInt64(done))
            if result == 0 { break }
            if result > 0 {
                done += Int(result)
            } else if -result != Int64(Errno.interrupted.rawValue) {
                return Int(result)
            }
        }
        return done
    }

    /// Writes all of `memory`. Returns 0 or a negated errno; after an error any part may have been written.
    static func write(_ descriptor: Int32, from memory: BorrowedMemory, at offset: UInt64, dsync: Bool) -> Int {
        var done = 0
        while done < memory.count {
            // SAFETY: `done ..< memory.count` lies inside the lent memory.
            let result =
                dsync
                ? unsafe chostio_pwrite_durable(descriptor, memory.address(done), memory.count - done, offset + UInt64(done))
                : unsafe chostio_pwrite(descriptor, memory.address(done), memory.count - done, offset + UInt64(done))
            if result > 0 {
                done += Int(result)
            } else if result == 0 {
                return -Int(Errno.ioError.rawValue)
            } else if -result != Int64(Errno.interrupted.rawValue) {
                return Int(result)
            }
        }
        return 0
    }

    /// Calls until it is not interrupted; returns its result or a negated errno.
    static func retrying(_ call: () -> Int32) -> Int {
        while true {
            let result = call()
            if result != -Errno.interrupted.rawValue { return Int(result) }
        }
    }

    /// The codes by which kernels and file systems say "I do not have this operation".
    static func isUnsupported(_ result: Int) -> Bool {
        guard result < 0 else { return false }
        let code = Errno(rawValue: CInt(-result))
        return code == .notSupported || code == .noFunction || code == .notSupportedOnSocket || code == .inappropriateIOCTLForDevice
    }
}
