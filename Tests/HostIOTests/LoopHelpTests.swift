import Synchronization
import Testing

@testable import HostIO

@Suite struct `Work that a loop hands over` {
    /// A loop with a helper, and nobody on either; none on a machine with one core.
    private static let loop = HostLoop.all.first { $0.helper != nil }
    private static let hasHelp: ConditionTrait = .enabled(if: loop != nil, "one core has no second loop")

    private static func run<Result: Sendable>(_ body: @escaping @Sendable (HostLoop) -> Result) async throws -> Result {
        let loop = try #require(Self.loop)
        return await withCheckedContinuation { done in loop.execute { done.resume(returning: body(loop)) } }
    }

    private struct Places: Sendable {
        var isWorkElsewhere = false
        var isBack = false
        var handedOverCount = 0
    }

    @Test(hasHelp) func `is done by another, and its result comes back`() async throws {
        let loop = try #require(Self.loop)
        for _ in 0..<100 {
            let places = await withCheckedContinuation { (done: CheckedContinuation<Places?, Never>) in
                loop.execute {
                    let isHandedOver = HostLoop.handOver({ HostLoop.current === loop.helper && HostLoop.current !== loop }) { isWorkElsewhere in
                        done.resume(
                            returning: Places(isWorkElsewhere: isWorkElsewhere, isBack: loop.isCurrent, handedOverCount: loop.handedOverCount))
                    }
                    if !isHandedOver { done.resume(returning: nil) }
                }
            }
            let found = try #require(places)
            #expect(found.isWorkElsewhere && found.isBack && found.handedOverCount == 0)
        }
    }

    @Test(hasHelp) func `stays here when the other serves somebody, and off loops`() async throws {
        let never = { @Sendable () -> Void in Issue.record("it was done") }
        #expect(!HostLoop.handOver(never, then: never))
        let isHandedOver = try await Self.run { loop in
            // As long as it is awake; nobody is there to see it otherwise.
            loop.helper?.isServing.store(true, ordering: .relaxed)
            defer { loop.helper?.isServing.store(false, ordering: .relaxed) }
            return loop.hasHelp || HostLoop.handOver(never, then: never)
        }
        #expect(!isHandedOver)
    }

    @Test(hasHelp) func `goes to a loop that helps no other`() async throws {
        var helpers: [ObjectIdentifier: HostLoop] = [:]
        for loop in HostLoop.all {
            let helper = await withCheckedContinuation { done in loop.execute { done.resume(returning: loop.helper) } }
            guard let helper else { continue }
            #expect(helper !== loop)
            #expect(helpers.updateValue(loop, forKey: ObjectIdentifier(helper)) == nil)
        }
        #expect(helpers.count == HostLoop.all.count / 2 * 2)
    }
}
