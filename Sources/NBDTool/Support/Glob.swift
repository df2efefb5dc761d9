/// A pattern in which `*` stands for any run of characters and `?` for any one, as QEMU's `--trace` takes it.
struct Glob: Equatable, Sendable {
    let pattern: String

    /// Takes time proportional to the product of both lengths, never more.
    func matches(_ name: String) -> Bool {
        let pattern = Array(pattern.utf8)
        let name = Array(name.utf8)
        var p = 0
        var n = 0
        // Where to go on when a match fails: after the last star, one more byte swallowed by it.
        var retry: (p: Int, n: Int)?
        while n < name.count {
            if p < pattern.count, pattern[p] == UInt8(ascii: "*") {
                retry = (p + 1, n)
                p += 1
            } else if p < pattern.count, pattern[p] == UInt8(ascii: "?") || pattern[p] == name[n] {
                p += 1
                n += 1
            } else if let last = retry {
                retry = (last.p, last.n + 1)
                p = last.p
                n = last.n + 1
            } else {
                return false
            }
        }
        return pattern[p...].allSatisfy { $0 == UInt8(ascii: "*") }
    }
}
