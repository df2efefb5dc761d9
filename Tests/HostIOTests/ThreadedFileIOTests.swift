import Synchronization
import Testing

@testable import HostIO

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

@Suite(.timeLimit(.minutes(1))) struct `File calls on threads` {
    @Test func `of a disk that hangs leave threads for other files`() async {
        let pool = ThreadPool(threadLimit: 3)
        let hanging = ThreadedFileIO(pool: pool, threadLimit: 2)
        let disk = HangingDisk()
        let stuck = (0..<20).map { _ in Task { await hanging.call { disk.wait() } } }
        while disk.waitingCount.load(ordering: .relaxed) < 2 { await Task.yield() }
        for index in 0..<100 { #expect(await ThreadedFileIO(pool: pool, threadLimit: 2).call { index } == index) }
        #expect(disk.waitingCount.load(ordering: .relaxed) == 2)
        disk.isBack.store(true, ordering: .releasing)
        for call in stuck { await call.value }
        #expect(disk.mostWaiting.load(ordering: .relaxed) == 2)
        #expect(disk.waitingCount.load(ordering: .relaxed) == 0)
    }

    @Test func `start in the order they came`() async {
        let io = ThreadedFileIO(pool: ThreadPool(threadLimit: 1), threadLimit: 1)
        let order = Mutex<[Int]>([])
        for index in 0..<1000 { io.submit { order.withLock { $0.append(index) } } }
        await io.call {}
        #expect(order.withLock { $0 } == Array(0..<1000))
    }
}

private final class HangingDisk: Sendable {
    let isBack = Atomic<Bool>(false)
    let waitingCount = Atomic<Int>(0)
    let mostWaiting = Atomic<Int>(0)

    func wait() {
        let count = waitingCount.add(1, ordering: .relaxed).newValue
        mostWaiting.max(count, ordering: .relaxed)
        while !isBack.load(ordering: .acquiring) { usleep(1000) }
        waitingCount.subtract(1, ordering: .relaxed)
    }
}
