import Synchronization

/// Runs asynchronous work to its end on this very thread, so that an input always does the same and coverage belongs to it.
func runToEnd<Value: Sendable>(_ body: @escaping @Sendable () async -> Value) -> Value {
    let executor = InlineExecutor()
    let result = Mutex<Value?>(nil)
    Task(executorPreference: executor) {
        let value = await body()
        result.withLock { $0 = value }
    }
    executor.drain()
    guard let value = result.withLock({ $0 }) else { preconditionFailure("waits for something that nobody will do") }
    return value
}

private final class InlineExecutor: TaskExecutor {
    private let jobs = Mutex<[UnownedJob]>([])

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        jobs.withLock { $0.append(job) }
    }

    func drain() {
        while let job = jobs.withLock({ $0.isEmpty ? nil : $0.removeFirst() }) {
            // SAFETY: the executor outlives the call: the caller holds it.
            unsafe job.runSynchronously(on: asUnownedTaskExecutor())
        }
    }
}
