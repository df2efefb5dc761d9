internal import CHostIO
internal import SystemPackage

#if canImport(Darwin)
internal import Darwin
#elseif canImport(Musl)
internal import Musl
#else
internal import Glibc
#endif

/// File calls on a small pool of threads.
///
/// Threads are started when work waits and none is idle, up to the limit, and then stay; idle ones sleep. Work starts in the order it came.
/// The queue needs no bound of its own: each item belongs to a request, and those are bounded for each client.
// SAFETY: mutex and condition are initialised once, at addresses that never change, and outlive every user of them: `self` is never freed
// while a thread runs. `@unchecked Sendable`: the variables are touched only while `mutex` is held.
@safe final class ThreadedFileIO: FileIO, @unchecked Sendable {
    /// The pool of this process.
    static let shared = ThreadedFileIO(threadLimit: 16)

    private let threadLimit: Int
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let workArrived: UnsafeMutablePointer<pthread_cond_t>
    private var queue: [(@Sendable () -> Void)?] = []
    private var queueHead = 0
    private var threadCount = 0
    private var idleCount = 0

    /// The pool lives as long as the process: its threads hold it.
    init(threadLimit: Int) {
        precondition(threadLimit > 0)
        self.threadLimit = threadLimit
        unsafe mutex = .allocate(capacity: 1)
        unsafe workArrived = .allocate(capacity: 1)
        unsafe pthread_mutex_init(mutex, nil)
        unsafe pthread_cond_init(workArrived, nil)
    }

    func read(_ descriptor: Int32, into memory: BorrowedMemory, at offset: UInt64) async -> Int {
        await call { PositionalIO.read(descriptor, into: memory, at: offset) }
    }

    func write(_ descriptor: Int32, from memory: BorrowedMemory, at offset: UInt64, dsync: Bool) async -> Int {
        await call { PositionalIO.write(descriptor, from: memory, at: offset, dsync: dsync) }
    }

    func datasync(_ descriptor: Int32) async -> Int {
        await call { PositionalIO.retrying { chostio_datasync(descriptor) } }
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
                unsafe Unmanaged<ThreadedFileIO>.fromOpaque(context).takeRetainedValue().work()
            }, reference.toOpaque())
        guard result < 0 else { return }
        // SAFETY: no thread took the reference over.
        unsafe reference.release()
        unsafe pthread_mutex_lock(mutex)
        threadCount -= 1
        let isAlone = threadCount == 0
        unsafe pthread_mutex_unlock(mutex)
        // The host has no thread for us. Others will get to the work; when there are none, slow is better than never.
        if isAlone {
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
            guard waiting else { return nil }
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
