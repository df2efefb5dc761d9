import Synchronization
import Testing

@testable import HostIO

@Suite struct `Work that a loop hands over` {
    /// A loop with a helper, and nobody on either; none on a machine with one core.
    private static let loop = HostLoop.all.first { $0.helper != nil }
    private static let hasHelp: ConditionTrait = .enabled(if: loop != nil, "one core has no second loop")

    private static func on<Result: Sendable>(_ loop: HostLoop, _ body: @escaping @Sendable () -> Result) async -> Result {
        await withCheckedContinuation { done in loop.execute { done.resume(returning: body()) } }
    }

    private struct Places: Sendable {
        var isWorkElsewhere = false
        var isBack = false
    }

    @Test(hasHelp) func `is done by another, and its result comes back`() async throws {
        let loop = try #require(Self.loop)
        var doneCount = 0
        // Clients of other tests may keep the helper from it.
        for _ in 0..<2000 where doneCount < 100 {
            let places = await withCheckedContinuation { (done: CheckedContinuation<Places?, Never>) in
                loop.execute {
                    let isHandedOver = HostLoop.handOver({ HostLoop.current === loop.helper && HostLoop.current !== loop }) { isWorkElsewhere in
                        done.resume(returning: Places(isWorkElsewhere: isWorkElsewhere, isBack: loop.isCurrent))
                    }
                    if !isHandedOver { done.resume(returning: nil) }
                }
            }
            guard let places else {
                try await Task.sleep(for: .milliseconds(5))
                continue
            }
            #expect(places.isWorkElsewhere && places.isBack)
            doneCount += 1
        }
        #expect(doneCount == 100)
    }

    @Test(hasHelp) func `stays here when the other serves somebody, and off loops`() async throws {
        let never = { @Sendable () -> Void in Issue.record("it was done") }
        #expect(!HostLoop.handOver(never, then: never))
        // A helper that falls asleep in between has time again: not each time.
        let loop = try #require(Self.loop)
        var isRefused = false
        for _ in 0..<100 where !isRefused {
            isRefused = await Self.on(loop) {
                loop.helper?.isServing.store(true, ordering: .relaxed)
                defer { loop.helper?.isServing.store(false, ordering: .relaxed) }
                return !loop.hasHelp && !HostLoop.handOver({}, then: {})
            }
        }
        #expect(isRefused)
    }

    @Test(hasHelp) func `goes to a loop that helps no other`() async throws {
        var helpers: [ObjectIdentifier: HostLoop] = [:]
        for loop in HostLoop.all {
            let helper = await Self.on(loop) { loop.helper }
            guard let helper else { continue }
            #expect(helper !== loop)
            #expect(helpers.updateValue(loop, forKey: ObjectIdentifier(helper)) == nil)
        }
        #expect(helpers.count == HostLoop.all.count / 2 * 2)
    }
}
