internal import CHostIO
internal import SystemPackage

/// The two queues of an io_uring, for one thread at a time.
///
/// The kernel reads submissions only during `enter`: the ring has no polling thread.
// SAFETY: the queues are what the kernel gave, with the sizes that the masks tell, mapped for as long as the process lives. `@unchecked
// Sendable`: it has one owner.
@safe struct Ring: ~Copyable, @unchecked Sendable {
    private let ring: chostio_ring
    /// Where the next submission goes.
    private var tail: UInt32

    /// - Parameter entryCount: most submissions that wait for `enter`, a power of two.
    /// - Throws: why this kernel gives no ring.
    init(entryCount: UInt32) throws(HostError) {
        var ring = unsafe chostio_ring()
        let result = unsafe chostio_ring_open(entryCount, &ring)
        guard result >= 0 else { throw Self.refusal(result) }
        unsafe self.ring = unsafe ring
        tail = unsafe chostio_load_acquire(ring.submission_tail)
    }

    deinit {
        _ = unsafe chostio_close(ring.fd)
    }

    static func refusal(_ result: Int32) -> HostError {
        let code = Errno(rawValue: -result)
        let detail: String? =
            switch code {
            case .noFunction: "the kernel has none (ENOSYS)"
            case .notPermitted, .permissionDenied: "kernel.io_uring_disabled or a sandbox forbids it (\(HostError(code, "").name))"
            case .notSupported: "it needs Linux 5.12 or later"
            default: nil
            }
        return HostError(code, "use io_uring", detail: detail)
    }

    /// - Precondition: fewer than `entryCount` wait.
    mutating func push(_ submission: chostio_ring_submission) {
        precondition(unsafe unsubmittedCount <= ring.submission_mask, "the submission queue is full")
        unsafe ring.submissions[Int(tail & ring.submission_mask)] = submission
        tail &+= 1
        unsafe chostio_store_release(ring.submission_tail, tail)
    }

    /// Submissions that the kernel has not been told of.
    var unsubmittedCount: UInt32 { unsafe tail &- chostio_load_acquire(ring.submission_head) }

    /// Ready for input when there are completions.
    var descriptor: Int32 { unsafe ring.fd }

    /// Submits what was pushed, without waiting. Returns 0 or more, or a negated errno.
    mutating func submit() -> Int32 {
        unsafe chostio_ring_enter(ring.fd, unsubmittedCount, 0)
    }

    var hasCompletion: Bool {
        unsafe chostio_load_acquire(ring.completion_head) != chostio_load_acquire(ring.completion_tail)
    }

    mutating func popCompletion() -> chostio_ring_completion? {
        // We alone move the head.
        let head = unsafe chostio_load_acquire(ring.completion_head)
        guard unsafe head != chostio_load_acquire(ring.completion_tail) else { return nil }
        let completion = unsafe ring.completions[Int(head & ring.completion_mask)]
        unsafe chostio_store_release(ring.completion_head, head &+ 1)
        return completion
    }

    /// Takes back the submission that was pushed last, if the kernel has not accepted it, and returns its user data.
    mutating func takeBack() -> UInt64? {
        guard unsubmittedCount > 0 else { return nil }
        tail &-= 1
        unsafe chostio_store_release(ring.submission_tail, tail)
        return unsafe ring.submissions[Int(tail & ring.submission_mask)].user_data
    }
}
