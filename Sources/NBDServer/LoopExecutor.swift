import NIOCore

/// Runs the tasks of a connection on its own event loop, so that a request's slow path needs no lock and no second thread.
final class LoopExecutor: TaskExecutor {
    let loop: any EventLoop

    init(_ loop: any EventLoop) { self.loop = loop }

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        loop.execute { [self] in
            // SAFETY: the job is run exactly once, and the executor is alive: the closure holds it.
            unsafe job.runSynchronously(on: asUnownedTaskExecutor())
        }
    }
}
