import NBDProtocol

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// The bytes that every WRITE sends: one block, made once and shared by all connections.
// SAFETY: the memory is filled before anybody else knows of it, never changed after, and freed when nobody holds this any more.
@safe final class BenchPayload: @unchecked Sendable {
    let byteCount: Int
    fileprivate let start: UnsafeMutableRawPointer

    /// The numbers of `SplitMix64(seed:)` as little-endian words, cut to `byteCount`. It starts at a page.
    init(byteCount: Int, seed: UInt64) {
        self.byteCount = byteCount
        let capacity = (byteCount + 7) & ~7
        unsafe start = .allocate(byteCount: capacity, alignment: 4096)
        var random = SplitMix64(seed: seed)
        for offset in stride(from: 0, to: capacity, by: 8) {
            unsafe start.storeBytes(of: random.next().littleEndian, toByteOffset: offset, as: UInt64.self)
        }
    }

    deinit { unsafe start.deallocate() }
}

/// The line to the server: a socket with a queue of requests to send and a buffer of bytes received. All memory is taken at the beginning.
// SAFETY: buffers are allocated once and freed in `deinit`. `headers` and `pieces` have room for `depth` requests, which `add` checks; the
// kernel gets addresses of these buffers only, and for the time of a call; `filled` and `taken` stay within the buffer's size.
@safe struct BenchLine: ~Copyable {
    private let socket: BenchSocket
    private let mode: ReplyMode
    private let payload: BenchPayload?

    // Sending: `pieces[sent..<queued]` wait, and point into `headers` and the payload.
    private let depth: Int
    private let headers: UnsafeMutableRawPointer
    private let pieces: UnsafeMutablePointer<iovec>
    private var addedCount = 0
    private var endsWithHeader = false
    private var queued = 0
    private var sent = 0

    // Receiving: `inbox[taken..<filled]` was received and not taken yet.
    private let inbox: UnsafeMutableRawPointer
    private var taken = 0
    private var filled = 0

    /// Half of it costs about a fifth more CPU for each read, twice and four times as much saves nothing (measured, 4 KiB to 1 MiB).
    private static let inboxByteCount = 256 << 10
    /// What sendmsg(2) takes at once.
    private static let pieceLimit = 1024
    private static let headerByteCountLimit = 32

    /// Nanoseconds to look for replies before the thread sleeps.
    private let pollLimit: UInt64

    init(_ socket: BenchSocket, mode: ReplyMode, depth: Int, payload: BenchPayload?, pollLimit: UInt64 = 0) {
        self.pollLimit = pollLimit
        self.socket = socket
        self.mode = mode
        self.payload = payload
        self.depth = depth
        unsafe headers = .allocate(byteCount: depth * Self.headerByteCountLimit, alignment: 64)
        unsafe pieces = .allocate(capacity: depth * 2)
        unsafe inbox = .allocate(byteCount: Self.inboxByteCount, alignment: 4096)
    }

    deinit {
        unsafe headers.deallocate()
        unsafe pieces.deallocate()
        unsafe inbox.deallocate()
    }

    // MARK: Sending

    var hasUnsent: Bool { sent < queued }

    /// Queues a request, a WRITE with its payload: at most `depth` of them until all are sent.
    ///
    /// - Precondition: nothing of what is queued was sent yet.
    mutating func add(_ header: RequestHeader) {
        if sent == queued {
            sent = 0
            queued = 0
            addedCount = 0
            endsWithHeader = false
        }
        precondition(addedCount < depth, "more requests than slots")
        let size = RequestHeader.byteCount(mode)
        let place = unsafe headers + addedCount * size
        addedCount += 1
        var output = unsafe OutputRawSpan(buffer: UnsafeMutableRawBufferPointer(start: place, count: size), initializedCount: 0)
        header.encode(into: &output, mode: mode)
        // Headers that follow each other go as one piece.
        if endsWithHeader {
            unsafe pieces[queued - 1].iov_len += size
        } else {
            unsafe pieces[queued] = iovec(iov_base: place, iov_len: size)
            queued += 1
        }
        endsWithHeader = true
        if header.command == .write, let payload {
            unsafe pieces[queued] = iovec(iov_base: payload.start, iov_len: payload.byteCount)
            queued += 1
            endsWithHeader = false
        }
    }

    /// Sends as much as there is room for, without waiting.
    ///
    /// - Throws: the error number.
    mutating func send() throws(BenchLineError) {
        while sent < queued {
            var message = unsafe msghdr()
            unsafe message.msg_iov = pieces + sent
            unsafe message.msg_iovlen = .init(min(queued - sent, Self.pieceLimit))
            var count = unsafe sendmsg(socket.descriptor, &message, Self.sendFlags)
            guard count >= 0 else {
                if errno == EINTR { continue }
                if errno == EAGAIN { return }
                throw .failed(errno)
            }
            while count > 0 {
                let length = unsafe pieces[sent].iov_len
                if count >= length {
                    count -= length
                    sent += 1
                } else {
                    unsafe pieces[sent].iov_base = pieces[sent].iov_base?.advanced(by: count)
                    unsafe pieces[sent].iov_len -= count
                    count = 0
                }
            }
        }
    }

    // MARK: Receiving

    /// What was received and is not taken yet.
    var received: RawSpan {
        @_lifetime(borrow self) get {
            let bytes = unsafe UnsafeRawBufferPointer(start: inbox + taken, count: filled - taken)
            return unsafe _overrideLifetime(RawSpan(_unsafeBytes: bytes), borrowing: self)
        }
    }

    mutating func take(_ count: Int) {
        precondition(count <= filled - taken)
        taken += count
    }

    /// One receive, as much as there is. With `waiting` it waits for at least one byte, but no longer than the socket's limit.
    ///
    /// - Returns: whether anything arrived.
    /// - Throws: `.closed` at the end of the stream.
    mutating func receive(waiting: Bool) throws(BenchLineError) -> Bool {
        // What is left is at most part of a head.
        if taken > 0 {
            unsafe inbox.copyMemory(from: inbox + taken, byteCount: filled - taken)
            filled -= taken
            taken = 0
        }
        var count = receive(Self.noWait)
        if waiting, count < 0, errno == EAGAIN {
            let end = BenchClock.now() + pollLimit
            while count < 0, errno == EAGAIN, BenchClock.now() < end { count = receive(Self.noWait) }
            if count < 0, errno == EAGAIN { count = receive(0) }
        }
        if count > 0 {
            filled += count
            return true
        }
        if count == 0 { throw .closed }
        guard errno == EAGAIN || errno == EINTR else { throw .failed(errno) }
        return false
    }

    private func receive(_ flags: Int32) -> Int {
        // SAFETY: the kernel gets the free part of the inbox.
        unsafe recv(socket.descriptor, inbox + filled, Self.inboxByteCount - filled, flags)
    }

    /// Waits until bytes can be received or sent, but no longer than that many milliseconds. - Returns: whether there are bytes to receive.
    func waitForEither(milliseconds: Int32) -> Bool {
        var entry = pollfd(fd: socket.descriptor, events: Int16(POLLIN | POLLOUT), revents: 0)
        // SAFETY: one entry, valid during the call.
        return unsafe poll(&entry, 1, milliseconds) > 0 && Int32(entry.revents) & ~Int32(POLLOUT) != 0
    }

    private static let noWait = Int32(MSG_DONTWAIT)
    #if canImport(Darwin)
    private static let sendFlags = noWait
    #else
    private static let sendFlags = noWait | Int32(MSG_NOSIGNAL)
    #endif
}

enum BenchLineError: Error {
    /// The server has closed its end.
    case closed
    /// errno.
    case failed(Int32)
}

/// Nanoseconds of a clock that only goes forward, and of the CPU that the calling thread has used.
enum BenchClock {
    static func now() -> UInt64 { read(CLOCK_MONOTONIC) }
    static func threadCPU() -> UInt64 { read(CLOCK_THREAD_CPUTIME_ID) }

    private static func read(_ clock: clockid_t) -> UInt64 {
        var time = timespec()
        // SAFETY: the pointer is valid during the call.
        _ = unsafe clock_gettime(clock, &time)
        return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
    }
}
