internal import Block
internal import Synchronization

/// The clusters that were expanded last: small reads of a compressed image come to the same one again and again.
///
/// By the place of the packed bytes, which are never written: a cluster that is rewritten gets another place.
final class ClusterCache: Sendable {
    private struct State {
        /// Used last at the end.
        var clusters: [(place: CompressedCluster, bytes: [UInt8])] = []
    }

    private let limit: Int
    private let state = Mutex(State())

    init(byteCountLimit: Int, clusterByteCount: Int) {
        limit = max(1, byteCountLimit / clusterByteCount)
    }

    subscript(place: CompressedCluster) -> [UInt8]? {
        state.withLock { state in
            guard let index = state.clusters.lastIndex(where: { $0.place == place }) else { return nil }
            let found = state.clusters.remove(at: index)
            state.clusters.append(found)
            return found.bytes
        }
    }

    func insert(_ bytes: [UInt8], at place: CompressedCluster) {
        state.withLock { state in
            guard !state.clusters.contains(where: { $0.place == place }) else { return }
            if state.clusters.count >= limit { state.clusters.removeFirst() }
            state.clusters.append((place, bytes))
        }
    }

    /// After packed bytes may have given way to others.
    func removeAll() {
        state.withLock { $0.clusters = [] }
    }
}
