#if os(Linux)
import Testing

@testable import HostIO

#if canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Opens a file none of which is in memory.
private func openCold(_ path: String) async throws -> HostFile {
    let descriptor = open(path, O_RDWR)
    defer { close(descriptor) }
    #expect(fsync(descriptor) == 0 && posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED) == 0)
    return try await HostFile.open(path)
}

@Suite struct `What is at hand` {
    @Test func `is what was read or written, page by page`() async throws {
        let scratch = Scratch()
        let file = try await openCold(scratch.file(contents: pattern(1 << 20)))
        #expect(!file.isAtHand(0, 4096))
        _ = try await file.bytes(at: 8192 + 100, 10)
        #expect(file.isAtHand(8192, 4096))
        #expect(!file.isAtHand(8192, 4097) && !file.isAtHand(8191, 4096))
        try await file.write(pattern(5000), at: 64 * 4096 - 2500)
        #expect(file.isAtHand(63 * 4096, 2 * 4096))
        _ = try await file.bytes(at: 0, 1 << 20)
        #expect(file.isAtHand(0, 1 << 20) && file.isAtHand(77, 1000))
    }

    // Nobody has read it here, but it is in memory: sent from there at the first request.
    @Test func `is what the kernel says to be in memory`() async throws {
        let scratch = Scratch()
        let file = try await HostFile.open(scratch.file("warm", contents: pattern(5 << 20)))
        #expect(file.isAtHand((2 << 20) - 1, 2) && file.isAtHand((5 << 20) - 1, 1) && file.isAtHand(0, 5 << 20))
        let path = scratch.file(contents: pattern(5 << 20))
        let cold = try await openCold(path)
        #expect(!cold.isAtHand(0, 1) && !cold.isAtHand(3 << 20, 4096))
        _ = try await cold.bytes(at: 0, 2 << 20)
        #expect(cold.isAtHand(0, 2 << 20) && !cold.isAtHand(0, (2 << 20) + 1))
        // Asked once for each granule: pages that come later are learnt by reading them.
        _ = try await HostFile.open(path).bytes(at: 3 << 20, 4096)
        #expect(!cold.isAtHand(3 << 20, 4096))
        // Until all is forgotten.
        cold.forgetWhatIsAtHand()
        #expect(cold.isAtHand(3 << 20, 4096) && cold.isAtHand(0, 2 << 20))
    }

    // Of a file that is neither ours nor writable mincore says that all of it is there. Root may write everything, so it steps back for a moment.
    @Test(.enabled(if: geteuid() == 0)) func `is nothing that the kernel would not tell`() async throws {
        let scratch = Scratch()
        let path = scratch.file(contents: pattern(1 << 20))
        #expect(chmod(path, 0o444) == 0)
        let descriptor = open(path, O_RDONLY)
        defer { close(descriptor) }
        guard let mapping = FileMapping(descriptor, byteCount: 1 << 20, isLocal: true) else {
            Issue.record("not mapped")
            return
        }
        #expect(seteuid(65534) == 0)
        let isAtHand = mapping.ask(0, 4096)
        #expect(seteuid(0) == 0)
        #expect(!isAtHand)
        mapping.forget()
        let isAtHandForRoot = mapping.ask(0, 4096)
        #expect(isAtHandForRoot)
    }

    // What is sent once by reference, as a copy of a disk is, shall not cost page tables.
    @Test func `is entered into the page table when it is sent by reference for the second time`() async throws {
        let scratch = Scratch()
        let file = try await HostFile.open(scratch.file(contents: pattern(5 << 20)))
        #expect(file.isAtHand(0, 5 << 20))
        func pass(_ offset: UInt64, _ count: Int) { file.mapping?.pass(offset, count) }
        func isEntered(_ offset: UInt64) -> Bool { file.mapping?.isEntered(offset) ?? false }
        func send() { for offset in stride(from: 0, to: UInt64(4 << 20), by: 64 << 10) { pass(offset, 64 << 10) } }
        send()
        #expect(!isEntered(0) && !isEntered(2 << 20))
        send()
        #expect(isEntered(0) && isEntered(2 << 20) && !isEntered(4 << 20))
        pass((4 << 20) + 4096, 8192)
        pass((4 << 20) + 4096, 8192)
        #expect(!isEntered(4 << 20))
        pass(3 << 20, 2 << 20)
        pass(3 << 20, 2 << 20)
        #expect(isEntered(4 << 20))
        file.forgetWhatIsAtHand()
        #expect(!isEntered(0))
    }

    @Test(arguments: [(0, 0), (1 << 20, 1), ((1 << 20) - 1, 2), (0, (1 << 20) + 1), (1 << 21, 1)])
    func `lies in the file`(offset: Int, count: Int) async throws {
        let scratch = Scratch()
        let file = try await HostFile.open(scratch.file(contents: pattern(1 << 20)))
        _ = try await file.bytes(at: 0, 1 << 20)
        #expect(!file.isAtHand(UInt64(offset), count))
    }

    @Test func `is nothing past the page cache, in an empty file, and after the end`() async throws {
        let scratch = Scratch()
        let direct = try await HostFile.open(scratch.file(contents: pattern(8192)), .init(isDirect: true))
        _ = try await direct.bytes(at: 0, 8192)
        #expect(!direct.isAtHand(0, 4096))
        let empty = try await HostFile.open(scratch.file("empty"))
        let isMapped = empty.mapping != nil
        #expect(!isMapped)
        let file = try await HostFile.open(scratch.file("closed", contents: pattern(8192)))
        _ = try await file.bytes(at: 0, 8192)
        file.close()
        #expect(!file.isAtHand(0, 4096))
    }
}

/// A list, where `#expect` can reach it: it takes no value that cannot be copied.
private final class Outbox {
    private var list = GatherList()
    var byteCount: Int { list.byteCount }
    var hasFiles: Bool { list.hasFiles }
    var hasWaited: Bool { list.hasWaited }

    func removeAll(refersToPages: Bool = false) { list.removeAll(refersToPages: refersToPages) }
    func append(_ bytes: RawSpan) -> Bool { list.append(bytes) }
    func append(_ file: HostFile, offset: UInt64, count: Int) -> Bool { list.append(file, offset: offset, count: count) }
    func append(zeroes count: Int) -> Bool { list.append(zeroes: count) }
    func send(on socket: StreamSocket) -> StreamSocket.Outcome { socket.send(&list) }
}

@Suite struct `A list of bytes to send` {
    private static func withSockets(_ body: (StreamSocket, Int32) throws -> Void) throws {
        var ends: [Int32] = [0, 0]
        #expect(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0)
        defer { for end in ends { close(end) } }
        try body(try StreamSocket(duplicating: ends[0]), ends[1])
    }

    private static func add(_ bytes: [UInt8], to list: Outbox) -> Bool { list.append(bytes.span.bytes) }

    private static func received(_ descriptor: Int32, _ count: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        let received = recv(descriptor, &bytes, count, Int32(MSG_DONTWAIT))
        return Array(bytes.prefix(max(received, 0)))
    }

    @Test func `is sent in order, from memory, from a file, and zeroes`() async throws {
        let scratch = Scratch()
        let file = try await HostFile.open(scratch.file(contents: pattern(100_000)))
        _ = try await file.bytes(at: 0, 100_000)
        try Self.withSockets { socket, peer in
            let list = Outbox()
            let bytes: [UInt8] = [1, 2, 3]
            #expect(Self.add(bytes, to: list))
            #expect(list.append(file, offset: 70_001, count: 5000))
            #expect(list.append(zeroes: 66_000))
            #expect(list.byteCount == 71_003 && list.hasFiles)
            #expect(list.send(on: socket) == .bytes(71_003))
            let isRight = Self.received(peer, 100_000) == bytes + pattern(100_000)[70_001..<75_001] + [UInt8](repeating: 0, count: 66_000)
            #expect(isRight)
            list.removeAll()
            #expect(list.byteCount == 0 && !list.hasFiles)
            #expect(!list.append(file, offset: 99_999, count: 2), "no byte behind the file")
        }
    }

    @Test func `takes no more parts than the kernel does`() throws {
        try Self.withSockets { socket, peer in
            let list = Outbox()
            let byte: [UInt8] = [7]
            var count = 0
            while list.append(byte.span.bytes) { count += 1 }
            #expect(count == GatherList.partLimit)
            #expect(list.send(on: socket) == .bytes(count))
            let isRight = Self.received(peer, 5000) == [UInt8](repeating: 7, count: count)
            #expect(isRight)
        }
    }

    // The receiver copies it, whenever it gets to that: only for files whose bytes stay where they are.
    @Test func `refers to long pieces of files, if it may`() async throws {
        let scratch = Scratch()
        let path = scratch.file(contents: pattern(1 << 20))
        let file = try await HostFile.open(path)
        let sevens = [UInt8](repeating: 7, count: 300 * 1024)
        for mayRefer in [true, false] {
            try await file.write(pattern(1 << 20), at: 0)
            try Self.withSockets { socket, peer in
                let list = Outbox()
                list.removeAll(refersToPages: mayRefer)
                let bytes: [UInt8] = [1, 2, 3]  // they have to stay
                #expect(Self.add(bytes, to: list))
                #expect(list.append(file, offset: 4097, count: GatherList.referenceFloor - 1))
                #expect(list.append(file, offset: 70_001, count: 100_000) != mayRefer)
                if mayRefer { #expect(!list.append(zeroes: 1) && !list.append(file, offset: 0, count: 1)) }
                let count = 3 + GatherList.referenceFloor - 1 + 100_000
                #expect(list.byteCount == count && list.hasFiles)
                #expect(list.send(on: socket) == .bytes(count))
                #expect(!list.hasWaited)
                let descriptor = open(path, O_WRONLY)
                #expect(pwrite(descriptor, sevens, sevens.count, 4096) == sevens.count)
                close(descriptor)
                let received = Self.received(peer, count)
                let isHead = Array(received.prefix(65_538)) == bytes + pattern(1 << 20)[4097..<4097 + 65_535]
                let isTail = received.dropFirst(65_538) == (mayRefer ? sevens[..<100_000] : pattern(1 << 20)[70_001..<170_001])
                #expect(received.count == count)
                #expect(isHead && isTail)
            }
        }
    }

    @Test func `refers to as much of a file as there is room for`() async throws {
        let scratch = Scratch()
        let contents = pattern(16 << 20)
        let file = try await HostFile.open(scratch.file(contents: contents))
        try Self.withSockets { socket, peer in
            let list = Outbox()
            var received: [UInt8] = []
            var sent = 0
            var turnCount = 0
            while received.count < contents.count {
                turnCount += 1
                list.removeAll(refersToPages: true)
                if sent == 0 { #expect(list.append(zeroes: 1)) }
                let offset = max(sent - 1, 0)
                if offset < contents.count { _ = list.append(file, offset: UInt64(offset), count: contents.count - offset) }
                switch list.send(on: socket) {
                case .bytes(let count): sent += count
                case .wouldBlock: break
                case let outcome:
                    Issue.record("\(outcome)")
                    return
                }
                received += Self.received(peer, 4 << 20)
            }
            let isRight = received.dropFirst().elementsEqual(contents.prefix(received.count - 1)) && sent == contents.count + 1
            #expect(isRight && turnCount > 2)
        }
    }

    @Test func `notices that pages it refers to were not in memory any more`() async throws {
        let scratch = Scratch()
        let path = scratch.file(contents: pattern(1 << 20))
        let file = try await openCold(path)
        _ = try await file.bytes(at: 0, 1 << 20)
        #expect(file.isAtHand(0, 1 << 20))
        _ = try await openCold(path)
        try Self.withSockets { socket, peer in
            let list = Outbox()
            list.removeAll(refersToPages: true)
            _ = list.append(file, offset: 0, count: 512 << 10)
            #expect(list.send(on: socket) == .bytes(512 << 10))
            #expect(list.hasWaited)
        }
    }

    // A file that is made shorter under our hands: an error of the call, never a signal.
    @Test(arguments: [false, true]) func `from a file that has become shorter is an error`(mayRefer: Bool) async throws {
        let scratch = Scratch()
        let path = scratch.file(contents: pattern(1 << 20))
        let file = try await HostFile.open(path)
        _ = try await file.bytes(at: 0, 1 << 20)
        #expect(truncate(path, 4096) == 0)
        try Self.withSockets { socket, peer in
            let list = Outbox()
            list.removeAll(refersToPages: mayRefer)
            #expect(list.append(file, offset: 8192, count: 100_000) != mayRefer)
            guard case .failed(let error) = list.send(on: socket) else {
                Issue.record("bytes that are not there were sent")
                return
            }
            #expect("\(error.code)" == "Bad address", "\(error)")
            // Nor is the kernel believed any more, which may keep more of the file than there is.
            #expect(!file.isAtHand(8192, 1))
        }
    }

    @Test func `meets a peer that is gone, or that does not read`() throws {
        try Self.withSockets { socket, peer in
            let list = Outbox()
            #expect(list.append(zeroes: 64 << 20))
            guard case .bytes(let count) = list.send(on: socket) else {
                Issue.record("nothing was sent")
                return
            }
            #expect(count > 0 && count < 64 << 20)
            #expect(list.send(on: socket) == .wouldBlock)
            shutdown(peer, Int32(SHUT_RDWR))
            guard case .failed(let error) = list.send(on: socket) else {
                Issue.record("sent to nobody")
                return
            }
            #expect("\(error.code)" == "Broken pipe", "\(error)")
        }
    }
}

@Suite(.timeLimit(.minutes(1))) struct `An event loop` {
    /// Echoes what it gets, in capital letters as it were: each byte plus one.
    private final class Echo: LoopClient {
        let socket: StreamSocket
        let loop: HostLoop
        var id: UInt64 = 0
        var turnCount = 0
        var received: [UInt8] = []

        init(_ descriptor: Int32, _ loop: HostLoop) throws {
            socket = try StreamSocket(duplicating: descriptor)
            self.loop = loop
        }

        func socketIsReady(input: Bool, output: Bool, hangup: Bool) {
            if input { _ = poll() }
            if hangup { loop.remove(id, socket) }
        }

        func poll() -> Bool {
            var bytes = [UInt8](repeating: 0, count: 4096)
            let count = bytes.withUnsafeMutableBytes { buffer in
                var output = OutputRawSpan(buffer: buffer, initializedCount: 0)
                guard case .bytes(let count) = socket.receive(into: &output, limit: 4096) else { return 0 }
                return output.finalize(for: buffer) == count ? count : 0
            }
            guard count > 0 else { return false }
            received = bytes.prefix(count).map { $0 &+ 1 }
            loop.requestTurn(self)
            return true
        }

        func turn() {
            turnCount += 1
            let list = Outbox()
            _ = list.append(received.span.bytes)
            _ = list.send(on: socket)
        }
    }

    private struct Carried<Value>: @unchecked Sendable { let value: Value }

    @Test(arguments: [0, 50_000, 1_000_000] as [UInt64])
    func `serves sockets, whether it looks for them before it sleeps or not`(pollLimit: UInt64) async throws {
        let loop = try HostLoop()
        var peers: [Int32] = []
        for _ in 0..<10 {
            var ends: [Int32] = [0, 0]
            #expect(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0)
            let client = Carried(value: try Echo(ends[0], loop))
            close(ends[0])
            peers.append(ends[1])
            loop.reserve()
            await withCheckedContinuation { done in
                loop.execute {
                    client.value.id = (try? loop.add(client.value, client.value.socket, pollLimit: pollLimit)) ?? 0
                    done.resume()
                }
            }
        }
        #expect(loop.clientCount == 10)
        for round in 0..<200 {
            for (index, peer) in peers.enumerated() where round % (index + 1) == 0 {
                var byte = UInt8(truncatingIfNeeded: round &+ index)
                #expect(send(peer, &byte, 1, 0) == 1)
                var answer: UInt8 = 0
                #expect(recv(peer, &answer, 1, 0) == 1)
                #expect(answer == byte &+ 1)
            }
        }
        for peer in peers { close(peer) }
        for _ in 0..<500 where loop.clientCount > 0 { try await Task.sleep(for: .milliseconds(10)) }
        #expect(loop.clientCount == 0)
    }

    @Test func `runs the tasks that prefer it, in order, and work from other threads`() async throws {
        let loop = try HostLoop()
        let order = await Task(executorPreference: loop) {
            var order: [Int] = []
            for index in 0..<1000 {
                precondition(loop.isCurrent)
                await Task.yield()
                order.append(index)
            }
            return order
        }.value
        #expect(order == Array(0..<1000))
        #expect(!loop.isCurrent)
        await withTaskGroup(of: Void.self) { group in
            for _ in 0..<8 {
                group.addTask {
                    for _ in 0..<500 {
                        let isThere = await withCheckedContinuation { done in loop.execute { done.resume(returning: loop.isCurrent) } }
                        #expect(isThere)
                    }
                }
            }
        }
    }

    // An idle server costs nothing.
    @Test func `takes no CPU time while nothing happens`() async throws {
        let loop = try HostLoop()
        func time() async -> Int {
            await withCheckedContinuation { done in
                loop.execute {
                    var time = timespec()
                    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
                    done.resume(returning: time.tv_sec * 1_000_000_000 + time.tv_nsec)
                }
            }
        }
        let before = await time()
        try await Task.sleep(for: .milliseconds(500))
        // To be asked costs some microseconds.
        #expect(await time() - before < 20_000_000)
    }

    @Test func `reads files by its own ring when its tasks ask for it`() async throws {
        let loop = try HostLoop()
        try #require(loop.ringRefusal == nil, "this kernel gives no io_uring")
        let scratch = Scratch()
        let file = try await HostFile.open(scratch.file(contents: pattern(1 << 20)), .init(isDirect: true, usesRing: true))
        let isRight = await withTaskGroup(of: Bool.self) { group in
            for index in 0..<300 {
                group.addTask(executorPreference: loop) {
                    let offset = index * 3333 % (1 << 20 - 8192)
                    return (try? await file.bytes(at: UInt64(offset), 8192)) == Array(pattern(1 << 20)[offset..<offset + 8192])
                }
            }
            return await group.allSatisfy { $0 }
        }
        #expect(isRight)
    }
}
#endif
