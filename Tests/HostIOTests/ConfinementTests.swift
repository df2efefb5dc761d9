import Glibc
import HostIO
import Synchronization
import SystemPackage
import Testing

/// Runs `body` on a thread of its own, which ends with it: a thread that is confined stays so. Waits for it without Swift's help: a task that
/// is resumed from there might be given another new thread, and that would be confined, too.
private func onThreadOfItsOwn<Result: Sendable>(_ body: @escaping @Sendable () -> Result) -> Result {
    let result = Box<Result>()
    var thread = pthread_t()
    let made = pthread_create(
        &thread, nil,
        { argument in
            Unmanaged<Job>.fromOpaque(argument!).takeRetainedValue().run()
            return nil
        }, Unmanaged.passRetained(Job { result.value.withLock { $0 = body() } }).toOpaque())
    precondition(made == 0)
    pthread_join(thread, nil)
    return result.value.withLock { $0! }
}

private final class Job: Sendable {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
}

private final class Box<Value: Sendable>: Sendable {
    let value = Mutex<Value?>(nil)
}

/// 0, or the error number.
private func canOpen(_ path: String, _ flags: Int32 = O_RDONLY) -> Int32 {
    let descriptor = open(path, flags)
    guard descriptor >= 0 else { return errno }
    close(descriptor)
    return 0
}

@Suite(.enabled(if: Confinement.version != nil, "this kernel has no Landlock")) struct `A confined thread` {
    @Test func `opens what was allowed, and nothing else`() throws {
        let inside = Scratch(), outside = Scratch()
        let (allowed, forbidden) = (inside.file(byteCount: 1), outside.file(byteCount: 1))
        let early = try FileDescriptor.open(FilePath(forbidden), .readWrite)
        defer { try? early.close() }
        let results = onThreadOfItsOwn { () -> [Int32] in
            do throws(HostError) {
                let confinement = try Confinement(keepsSignals: true)
                try confinement.allow([.readFile, .removeFile], beneath: inside.path)
                try confinement.confineThread()
            } catch {
                return [error.code.rawValue]
            }
            var byte: UInt8 = 7
            let socket = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
            defer { close(socket) }
            var address = sockaddr_in()
            address.sin_family = sa_family_t(AF_INET)
            let bound = withUnsafePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) }
            }
            return [
                canOpen(allowed), canOpen(allowed, O_WRONLY), canOpen(forbidden), canOpen("/etc/passwd"), canOpen("/proc/self/status"),
                // What was open before stays open, for reading and for writing.
                pwrite(early.rawValue, &byte, 1, 0) == 1 ? 0 : errno,
                Confinement.version ?? 0 >= 4 ? (bound == 0 ? 0 : errno) : EACCES,
                unlink(forbidden) == 0 ? 0 : errno, unlink(allowed) == 0 ? 0 : errno,
            ]
        }
        #expect(results == [0, EACCES, EACCES, EACCES, EACCES, 0, EACCES, EACCES, 0])
        // This thread is another one.
        #expect(canOpen(forbidden) == 0)
    }

    @Test(.enabled(if: Confinement.version ?? 0 >= 6, "this kernel's Landlock knows no scopes"), arguments: [true, false])
    func `signals other processes only where that is kept`(keepsSignals: Bool) {
        let result = onThreadOfItsOwn { () -> Int32 in
            do throws(HostError) {
                try Confinement(keepsSignals: keepsSignals).confineThread()
            } catch {
                return error.code.rawValue
            }
            return kill(getppid(), 0) == 0 ? 0 : errno
        }
        #expect(result == (keepsSignals ? 0 : EPERM))
    }

    @Test func `is not made by rules about what is not there`() {
        let error = onThreadOfItsOwn { () -> HostError? in
            do throws(HostError) {
                try Confinement(keepsSignals: true).allow(.readFile, beneath: "/nowhere/at/all")
                return nil
            } catch {
                return error
            }
        }
        #expect(error?.code == .noSuchFileOrDirectory)
        #expect(error?.path == "/nowhere/at/all")
    }
}
