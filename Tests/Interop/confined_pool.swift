// A confined process with more work than its pool has threads, for longer than libdispatch waits before it looks after them; and files
// in /proc that are nobody else's business. Compiled and run by test_confinement.py.
import Dispatch
import Glibc

let rules = chostio_landlock_begin(false)
guard rules >= 0 else { fatalError("no rules: \(rules)") }
DispatchQueue.global().async {}
let count = chostio_landlock_confine_process(rules)
guard count > 0 else { fatalError("not confined: \(count)") }
let group = DispatchGroup()
for _ in 0..<600 { DispatchQueue.global().async(group: group) { usleep(30_000) } }
group.wait()
for path in ["/etc/passwd", "/proc/self/root/etc/passwd", "/proc/\(getppid())/environ", "/proc/\(getppid())/maps"] {
    guard open(path, O_RDONLY) < 0, errno == EACCES else { fatalError("\(path) can be read") }
}
print("alive")
