internal import CHostIO
internal import SystemPackage

/// One whole transfer, made of as many submissions to a ring as the kernel wants.
struct RingCall: Sendable {
    enum Kind: Sendable {
        case read, write
    }

    /// What is to be done after a completion.
    enum Step: Equatable {
        /// Bytes read, or 0, or a negated errno.
        case finished(Int)
        /// Submit what is left.
        case again
        /// The kernel wants no more of it in the ring.
        case elsewhere
    }

    let kind: Kind
    let descriptor: Int32
    let memory: BorrowedMemory
    let offset: UInt64
    let dsync: Bool
    /// Bytes that are through.
    private(set) var done = 0

    init(_ kind: Kind, _ descriptor: Int32, _ memory: BorrowedMemory, at offset: UInt64, dsync: Bool = false) {
        self.kind = kind
        self.descriptor = descriptor
        self.memory = memory
        self.offset = offset
        self.dsync = dsync
    }

    /// Most bytes of one submission; the kernel does less than 2^31 at once.
    private static let submissionByteLimit = 1 << 30

    /// What is left, for the kernel.
    func submission(userData: UInt64) -> chostio_ring_submission {
        var submission = chostio_ring_submission()
        submission.operation = UInt8(kind == .read ? CHOSTIO_RING_READ : CHOSTIO_RING_WRITE)
        submission.fd = descriptor
        submission.offset = offset + UInt64(done)
        // SAFETY: the memory is lent until the call has finished, which is after the kernel's last use of it.
        submission.address = UInt64(UInt(bitPattern: unsafe memory.address(done)))
        submission.count = UInt32(min(memory.count - done, Self.submissionByteLimit))
        if dsync { submission.operation_flags = UInt32(CHOSTIO_RING_DSYNC) }
        submission.user_data = userData
        return submission
    }

    /// Takes the kernel's answer to the last submission.
    mutating func completed(_ result: Int32) -> Step {
        guard result >= 0 else {
            let code = Errno(rawValue: -result)
            if code == .interrupted || code == .canceled { return .again }
            return code == .resourceTemporarilyUnavailable ? .elsewhere : .finished(Int(result))
        }
        done += min(Int(result), memory.count - done)
        if result > 0, done < memory.count { return .again }
        switch kind {
        case .read: return .finished(done)
        case .write: return .finished(done == memory.count ? 0 : -Int(Errno.ioError.rawValue))
        }
    }

    /// Does what is left, waiting for it, and returns the result of the whole.
    func perform() -> Int {
        let rest = memory.part(done, memory.count - done)
        let position = offset + UInt64(done)
        guard kind == .read else { return PositionalIO.write(descriptor, from: rest, at: position, dsync: dsync) }
        let result = PositionalIO.read(descriptor, into: rest, at: position)
        return result < 0 ? result : done + result
    }
}
