internal import CHostIO
internal import SystemPackage

/// What is sent at a time, from several places: bytes in memory, bytes of files, zeroes. Made anew for each time, in room that stays.
///
/// Bytes of files that are in memory are sent in one of two ways. From the file's mapping, many pieces with one call: the kernel copies them.
/// Or a long piece by reference, with a call of its own (sendfile): nobody copies it but the receiver, out of the page cache, whenever it
/// gets to that. So that is only for files that keep each byte where it is (`removeAll`).
///
/// A list does not keep alive what it points to: it lives from `removeAll` to the send in one turn of a loop, while the owner of the bytes
/// leaves them where they are.
// SAFETY: `parts` has `partLimit` entries and `zeroes` its count, for as long as the list lives; entries beyond `count` are never read.
@safe public struct GatherList: ~Copyable {
    /// As many as the kernel takes at once (IOV_MAX).
    public static let partLimit = 1024

    /// Shorter pieces are rather copied, many at a time.
    static let referenceFloor = 64 << 10
    /// Bytes from which on each call is looked at.
    private static let lookFloor = 256 << 10

    private let parts: UnsafeMutablePointer<iovec>
    private let zeroes: UnsafeMutableRawBufferPointer
    private(set) var count = 0
    public private(set) var byteCount = 0
    private var refersToPages = false
    /// There are pieces that are long enough to be sent by reference.
    public private(set) var hasLongPieces = false
    /// What is sent by reference, behind everything else.
    private var tail: (file: HostFile, offset: UInt64, count: Int)?
    private var tailCount: UInt64 = 0
    /// Sending had to wait for a disk, as far as it was looked at.
    public private(set) var hasWaited = false
    /// Files that a part comes from, without repetitions in a row.
    private(set) var files: [HostFile] = []

    public init() {
        unsafe parts = .allocate(capacity: Self.partLimit)
        unsafe zeroes = .allocate(byteCount: 64 << 10, alignment: 4096)
        unsafe zeroes.initializeMemory(as: UInt8.self, repeating: 0)
        files.reserveCapacity(16)
    }

    deinit {
        unsafe parts.deallocate()
        unsafe zeroes.deallocate()
    }

    /// - Parameter refersToPages: long pieces of files may be sent by reference. Needs a socket that never waits, and a thread without SIGPIPE.
    public mutating func removeAll(refersToPages: Bool = false) {
        self.refersToPages = refersToPages
        tail = nil
        hasLongPieces = false
        hasWaited = false
        count = 0
        byteCount = 0
        files.removeAll(keepingCapacity: true)
    }

    /// Nothing comes behind a tail.
    private var isFull: Bool { count == Self.partLimit || tail != nil }

    /// Part of the bytes comes from files.
    public var hasFiles: Bool { !files.isEmpty }

    /// Sending had to wait for a disk: what was known of these files is not true any more.
    public func forgetWhatIsAtHand() {
        for file in files { file.forgetWhatIsAtHand() }
    }

    /// Each `append` returns false when not all of it found room: the rest is for the next call.
    public mutating func append(_ bytes: RawSpan) -> Bool {
        guard bytes.byteCount > 0 else { return true }
        // SAFETY: the address is used under the rule of this type.
        return unsafe bytes.withUnsafeBytes { bytes in unsafe append(bytes.baseAddress, bytes.count) }
    }

    /// Bytes of a file that are at hand (`HostFile.isAtHand`).
    public mutating func append(_ file: HostFile, offset: UInt64, count: Int) -> Bool {
        guard !isFull, file.mapping?.contains(offset, count) == true else { return false }
        if files.last !== file { files.append(file) }
        let isLong = count >= Self.referenceFloor
        if isLong { hasLongPieces = true }
        if refersToPages, isLong {
            file.mapping?.pass(offset, count)
            tail = (file, offset, count)
            byteCount += count
            return false
        }
        file.mapping?.enter(offset, count)
        return unsafe append(file.mapping?.address(offset), count)
    }

    public mutating func append(zeroes count: Int) -> Bool {
        var rest = count
        while rest > 0 {
            let length = unsafe min(rest, zeroes.count)
            guard unsafe append(UnsafeRawPointer(zeroes.baseAddress), length) else { return false }
            rest -= length
        }
        return true
    }

    private mutating func append(_ address: UnsafeRawPointer?, _ length: Int) -> Bool {
        guard !isFull else { return false }
        // SAFETY: there is room; the kernel reads the memory, though the type of `iovec` would allow more.
        unsafe parts[count] = iovec(iov_base: UnsafeMutableRawPointer(mutating: address), iov_len: length)
        count += 1
        byteCount += length
        return true
    }

    /// Sends what fits. Returns how many bytes that were, or a negated errno; after EFAULT the files are not sent from memory again so easily.
    mutating func send(on descriptor: Int32) -> Int {
        var result = 0
        if count > 0 { result = Int(unsafe chostio_send(descriptor, parts, Int32(count), tail != nil)) }
        if let tail, result == byteCount - tail.count {
            let tailResult = sendTail(tail.file, tail.offset, tail.count, on: descriptor)
            // Without room for it, what was sent before counts; any other failure ends the connection.
            if tailResult >= 0 {
                result += tailResult
            } else if result == 0 || tailResult != -Int(Errno.wouldBlock.rawValue) {
                result = tailResult
            }
        }
        if result == -Int(Errno.badAddress.rawValue) {
            for file in files { file.distrustWhatIsAtHand() }
        }
        return result
    }

    /// The call waits for pages that are not in memory any more, and nobody says so: so it is looked at now and then what it has read.
    private mutating func sendTail(_ file: HostFile, _ offset: UInt64, _ count: Int, on descriptor: Int32) -> Int {
        tailCount &+= 1
        let isLookedAt = count >= Self.lookFloor || tailCount % 16 == 0
        let before = isLookedAt ? chostio_blocks_read() : 0
        let result = Int(chostio_send_file(descriptor, file.descriptor, offset, count))
        if isLookedAt { hasWaited = chostio_blocks_read() != before }
        // The file has become shorter.
        return result == 0 ? -Int(Errno.badAddress.rawValue) : result
    }
}
