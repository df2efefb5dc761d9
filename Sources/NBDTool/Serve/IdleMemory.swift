import HostIO
import NBDServer

/// Gives memory back that clients have needed who are gone.
///
/// glibc keeps what is freed for whoever asks next. That makes large requests fast (to have each of them take memory from the system and give it
/// back, as a fixed M_MMAP_THRESHOLD does, took half of the throughput of 2 MiB writes), but after a crowd the process would stay at its peak.
enum IdleMemory {
    /// How often it is looked whether somebody has left. Short enough that a crowd is forgotten soon, and long enough that clients who come and
    /// go all the time cost nothing.
    private static let pause = Duration.seconds(5)

    /// Until the task is cancelled.
    static func watch(_ server: NBDServer) async {
        var goneBefore: UInt64 = 0
        // Requests of a client who is gone may still run, with their memory: it is looked once more after the last has left.
        var isDue = false
        while (try? await Task.sleep(for: pause)) != nil {
            let gone = server.counters.connections &- UInt64(server.connectionCount)
            let haveSomeLeft = gone != goneBefore
            goneBefore = gone
            if haveSomeLeft || isDue { FreeMemory.giveBack() }
            isDue = haveSomeLeft
        }
    }
}
