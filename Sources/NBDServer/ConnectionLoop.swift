import HostIO
import NIOCore
import Synchronization

/// The event loop that a connection lives on, of whichever kind.
protocol ConnectionLoop: TaskExecutor {
    /// Whether the caller runs on it.
    var isCurrent: Bool { get }
    /// Runs `work` on it, soon.
    func execute(_ work: @escaping @Sendable () -> Void)
    /// Where tasks run.
    var home: any ConnectionLoop { get }
}

extension ConnectionLoop {
    var home: any ConnectionLoop { self }
}

extension HostLoop: ConnectionLoop {}

/// The loop of a connection that may move to another: what is sent here follows it.
final class LoopAddress: ConnectionLoop {
    private let current: Mutex<HostLoop>

    init(_ loop: HostLoop) { current = Mutex(loop) }

    var home: any ConnectionLoop { host }
    private var host: HostLoop { current.withLock { $0 } }
    var isCurrent: Bool { host.isCurrent }

    func execute(_ work: @escaping @Sendable () -> Void) {
        let loop = host
        loop.execute { [self] in
            if loop === host { work() } else { execute(work) }
        }
    }

    func enqueue(_ job: consuming ExecutorJob) { host.enqueue(job) }

    /// On the old loop, as the last thing that happens there: `arrival` is the first on the new one, and finds the address changed.
    func change(to loop: HostLoop, _ arrival: @escaping @Sendable () -> Void) {
        current.withLock { current in
            loop.execute(arrival)
            current = loop
        }
    }
}

/// An event loop of NIO, which runs the tasks of its connections, so that a request's slow path needs no lock and no second thread.
final class LoopExecutor: ConnectionLoop {
    let loop: any EventLoop

    init(_ loop: any EventLoop) { self.loop = loop }

    var isCurrent: Bool { loop.inEventLoop }

    func execute(_ work: @escaping @Sendable () -> Void) { loop.execute(work) }

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        loop.execute { [self] in
            // SAFETY: the job is run exactly once, and the executor is alive: the closure holds it.
            unsafe job.runSynchronously(on: asUnownedTaskExecutor())
        }
    }
}

/// An object that belongs to one loop, for closures that run there.
// SAFETY: `@unchecked Sendable`: the object is only reached on its loop, which is checked each time.
struct LoopBound<Value: AnyObject>: @unchecked Sendable {
    private let object: Value
    let loop: any ConnectionLoop

    init(_ object: Value, _ loop: any ConnectionLoop) {
        self.object = object
        self.loop = loop
    }

    var value: Value {
        precondition(loop.isCurrent, "touched off its loop")
        return object
    }

    /// Calls `body` with the object on its loop, soon.
    func execute(_ body: @escaping @Sendable (Value) -> Void) {
        loop.execute { body(value) }
    }
}
