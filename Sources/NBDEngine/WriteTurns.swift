import Synchronization

/// Long writes to one device from several loops, one at a time: a file system lets in one at a time, too, but who waits there keeps a core busy
/// with looking on. A loop that is told in time does something else.
///
/// Only advice: two that begin at the same moment both write, and nobody is kept from writing.
public final class WriteTurns: Sendable {
    private let isBusy = Atomic<Bool>(false)

    public init() {}

    /// Somebody writes.
    var isTaken: Bool { isBusy.load(ordering: .relaxed) }

    func take(_ write: () -> Bool) -> Bool {
        isBusy.store(true, ordering: .relaxed)
        defer { isBusy.store(false, ordering: .relaxed) }
        return write()
    }
}
