import HostIO
import NBDProtocol

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Who the process becomes with `--user` and `--group`: one user, one group, and nothing of what it was.
struct Privileges: Equatable, Sendable {
    let user: uid_t
    let group: gid_t

    /// Looks up names. Numbers are taken as they are.
    ///
    /// - Returns: nil when neither is given.
    /// - Throws: `.usage` for who is not known, and for a number of a user whose group nobody knows; `.runtime` when this process is not root.
    init?(user userText: String?, group groupText: String?) throws(ToolError) {
        guard userText != nil || groupText != nil else { return nil }
        guard geteuid() == 0 else { throw .runtime("--user and --group need root: this process is user \(geteuid())") }
        var group: gid_t?
        if let groupText { group = try Self.group(groupText) }
        guard let userText else {
            self.user = getuid()
            self.group = group ?? getgid()
            return
        }
        let (user, itsGroup) = try Self.user(userText)
        guard let group = group ?? itsGroup else { throw .usage("--user \(user) is not in the user database: give its --group, too") }
        self.user = user
        self.group = group
    }

    private static func user(_ text: String) throws(ToolError) -> (uid_t, gid_t?) {
        let number = uid_t(text)
        // SAFETY: both calls return nil or a record that is valid until the next call; this happens before the server starts, on one thread.
        let record = unsafe number.map { unsafe getpwuid($0) } ?? getpwnam(text)
        if let record = unsafe record { return unsafe (record.pointee.pw_uid, record.pointee.pw_gid) }
        guard let number, number != uid_t.max else { throw .usage("--user: there is no user '\(text.sanitized())'") }
        return (number, nil)
    }

    private static func group(_ text: String) throws(ToolError) -> gid_t {
        if let number = gid_t(text), number != gid_t.max { return number }
        // SAFETY: as above.
        guard let record = unsafe getgrnam(text) else { throw .usage("--group: there is no group '\(text.sanitized())'") }
        // SAFETY: as above.
        return unsafe record.pointee.gr_gid
    }

    /// Becomes who this says, for good. Supplementary groups first, the user last: afterwards there is no right to change anything.
    ///
    /// - Throws: `.runtime` when the system refuses, or when it does not but the old rights are still there.
    func take() throws(ToolError) {
        var groups = [group]
        // SAFETY: the array has one element.
        guard unsafe setgroups(1, &groups) == 0 else { throw Self.failure("the supplementary groups") }
        guard setgid(group) == 0 else { throw Self.failure("group \(group)") }
        guard setuid(user) == 0 else { throw Self.failure("user \(user)") }
        do throws(HostError) {
            try Confinement.become(user: user, group: group)
        } catch {
            throw .runtime("\(error)")
        }
        guard getuid() == user, geteuid() == user, getgid() == group, getegid() == group else { throw Self.failure("user \(user)") }
        guard getgroups(0, nil) <= 1 else { throw Self.failure("the supplementary groups") }
        guard user == 0 || setuid(0) != 0 else { throw .runtime("cannot give up root: it can be taken back") }
    }

    private static func failure(_ what: String) -> ToolError {
        .runtime("cannot change to \(what): \(HostProcess.text(of: errno))")
    }
}
