import Testing

@testable import HostIO

@Suite struct `Guard against stalls` {
    private let second: UInt64 = 1_000_000_000

    @Test func `lets fast writes through`() {
        let stalls = StallGuard()
        for time in 1...100 as ClosedRange<UInt64> {
            let admitted = stalls.admits(at: time * 1000)
            #expect(admitted)
            stalls.record(start: time * 1000, end: time * 1000 + StallGuard.stallLimit)
        }
        let admitted = stalls.admits(at: 200_000)
        #expect(admitted)
    }

    @Test func `pauses after a slow one, twice as long each time it comes back at once`() {
        let stalls = StallGuard()
        var now = second
        for pause in [20, 40, 80, 160, 320, 640, 1280, 2000, 2000] as [UInt64] {
            stalls.record(start: now, end: now + 200_000_000)
            now += 200_000_000
            let answers = [stalls.admits(at: now + pause * 1_000_000 - 1), stalls.admits(at: now + pause * 1_000_000)]
            #expect(answers == [false, true])
            now += pause * 1_000_000
        }
    }

    @Test func `forgets when it was long ago`() {
        let stalls = StallGuard()
        stalls.record(start: second, end: 2 * second)
        stalls.record(start: 100 * second, end: 101 * second)
        let admitted = stalls.admits(at: 101 * second + StallGuard.shortestPause)
        #expect(admitted)
    }
}
