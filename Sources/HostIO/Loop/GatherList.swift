internal import CHostIO
internal import SystemPackage

/// What one call sends, from several places: bytes in memory, bytes of mapped files, zeroes. Made anew for each call, in room that stays.
///
/// A list does not keep alive what it points to: it lives from `removeAll` to the send in one turn of a loop, while the owner of the bytes
/// leaves them where they are.
// SAFETY: `parts` has `partLimit` entries and `zeroes` its count, for as long as the list lives; entries beyond `count` are never read.
@safe public final class GatherList {
    /// As many as the kernel takes at once (IOV_MAX).
    public static let partLimit = 1024

    private let parts: UnsafeMutablePointer<iovec>
    private let zeroes: UnsafeMutableRawBufferPointer
    private(set) var count = 0
    public private(set) var byteCount = 0
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

    public func removeAll() {
        count = 0
        byteCount = 0
        files.removeAll(keepingCapacity: true)
    }

    /// Part of the bytes comes from files.
    public var hasFiles: Bool { !files.isEmpty }

    /// Sending had to wait for a disk: what was known of these files is not true any more.
    public func forgetWhatIsAtHand() {
        for file in files { file.forgetWhatIsAtHand() }
    }

    /// Each `append` returns false when not all of it found room: the rest is for the next call.
    public func append(_ bytes: RawSpan) -> Bool {
        guard bytes.byteCount > 0 else { return true }
        // SAFETY: the address is used under the rule of this type.
        return unsafe bytes.withUnsafeBytes { bytes in unsafe append(bytes.baseAddress, bytes.count) }
    }

    /// Bytes of a file that are at hand (`HostFile.isAtHand`).
    public func append(_ file: HostFile, offset: UInt64, count: Int) -> Bool {
        guard let mapping = file.mapping, offset <= mapping.byteCount, UInt64(count) <= mapping.byteCount - offset else { return false }
        guard unsafe append(mapping.address(offset), count) else { return false }
        if files.last !== file { files.append(file) }
        return true
    }

    public func append(zeroes count: Int) -> Bool {
        var rest = count
        while rest > 0 {
            let length = unsafe min(rest, zeroes.count)
            guard unsafe append(UnsafeRawPointer(zeroes.baseAddress), length) else { return false }
            rest -= length
        }
        return true
    }

    private func append(_ address: UnsafeRawPointer?, _ length: Int) -> Bool {
        guard count < Self.partLimit else { return false }
        // SAFETY: there is room; the kernel reads the memory, though the type of `iovec` would allow more.
        unsafe parts[count] = iovec(iov_base: UnsafeMutableRawPointer(mutating: address), iov_len: length)
        count += 1
        byteCount += length
        return true
    }

    /// Sends what fits. Returns how many bytes that were, or a negated errno; after EFAULT the files are not sent from memory again so easily.
    func send(on descriptor: Int32) -> Int {
        let result = Int(unsafe chostio_send(descriptor, parts, Int32(count)))
        if result == -Int(Errno.badAddress.rawValue) {
            for file in files { file.distrustWhatIsAtHand() }
        }
        return result
    }
}
