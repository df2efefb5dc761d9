internal import CHostIO
internal import SystemPackage

#if canImport(Darwin)
internal import Darwin
#elseif canImport(Musl)
internal import Musl
#else
internal import Glibc
#endif

/// Threads for calls that may wait for a disk.
///
/// They are started when work waits and none is idle, up to the limit, and then stay; idle ones sleep. Work starts in the order it came.
/// The queue needs no bound of its own: each item belongs to a request, and those are bounded for each client.
// SAFETY: mutex and condition are initialised once, at addresses that never change, and outlive every user of them: `self` is never freed
// while a thread runs. `@unchecked Sendable`: the variables are touched only while `mutex` is held.
@safe final class ThreadPool: @unchecked Sendable {
    /// The pool of this process. As many as four files may use at once: see `ThreadedFileIO`.
    static let shared = ThreadPool(threadLimit: 64)

    private let threadLimit: Int
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let workArrived: UnsafeMutablePointer<pthread_cond_t>
    private var queue: [(@Sendable () -> Void)?] = []
    private var queueHead = 0
    private var threadCount = 0
    private var idleCount = 0
    /// A caller works off the queue, for want of threads.
    private var isDraining = false

    /// The pool lives as long as the process: its threads hold it.
    init(threadLimit: Int) {
        precondition(threadLimit > 0)
        self.threadLimit = threadLimit
        unsafe mutex = .allocate(capacity: 1)
        unsafe workArrived = .allocate(capacity: 1)
        unsafe pthread_mutex_init(mutex, nil)
        unsafe pthread_cond_init(workArrived, nil)
    }

    func submit(_ work: @escaping @Sendable () -> Void) {
        unsafe pthread_mutex_lock(mutex)
        queue.append(work)
        let mustStart = queue.count - queueHead > idleCount && threadCount < threadLimit
        if mustStart {
            threadCount += 1
        } else {
            unsafe pthread_cond_signal(workArrived)
        }
        unsafe pthread_mutex_unlock(mutex)
        if mustStart { startThread() }
    }

    private func startThread() {
        let reference = unsafe Unmanaged.passRetained(self)
        // SAFETY: the thread takes over the reference that was retained for it; the context is that reference, never null.
        let result = unsafe chostio_start_thread(
            { context in
                guard let context = unsafe context else { return }
                unsafe Unmanaged<ThreadPool>.fromOpaque(context).takeRetainedValue().work()
            }, reference.toOpaque())
        guard result < 0 else { return }
        // SAFETY: no thread took the reference over.
        unsafe reference.release()
        unsafe pthread_mutex_lock(mutex)
        threadCount -= 1
        // Whoever drains already gets to this, too. Work that hands in more work must not end up inside of itself.
        let mustDrain = threadCount == 0 && !isDraining
        if mustDrain { isDraining = true }
        unsafe pthread_mutex_unlock(mutex)
        // The host has no thread for us. Others will get to the work; when there are none, slow is better than never.
        if mustDrain {
            while let work = next(waiting: false) { work() }
        }
    }

    private func work() {
        while let work = next(waiting: true) { work() }
    }

    private func next(waiting: Bool) -> (@Sendable () -> Void)? {
        unsafe pthread_mutex_lock(mutex)
        defer { unsafe pthread_mutex_unlock(mutex) }
        while queueHead == queue.count {
            guard waiting else {
                isDraining = false
                return nil
            }
            idleCount += 1
            unsafe pthread_cond_wait(workArrived, mutex)
            idleCount -= 1
        }
        let work = queue[queueHead]
        queue[queueHead] = nil
        queueHead += 1
        if queueHead == queue.count {
            queue.removeAll(keepingCapacity: queueHead <= 1024)
            queueHead = 0
        } else if queueHead >= 1024, queueHead * 2 >= queue.count {
            queue.removeFirst(queueHead)
            queueHead = 0
        }
        return work
    }
}
