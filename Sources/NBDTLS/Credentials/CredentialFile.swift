import SystemPackage

/// A file of credentials as it was read, or bytes from elsewhere under a name for messages.
struct CredentialFile {
    /// What is larger is no file of credentials.
    static let byteLimit = 1 << 20

    var name: String
    var bytes: [UInt8]

    init(name: String, bytes: [UInt8]) {
        self.name = name
        self.bytes = bytes
    }

    /// - Throws: when it is not there, cannot be read, or is too large.
    init(path: String) throws(TLSCredentialError) {
        guard let file = try CredentialFile(pathIfPresent: path) else { throw TLSCredentialError("\(path): no such file") }
        self = file
    }

    /// - Returns: nil when it is not there. A symbolic link that leads nowhere is: that a list of revoked certificates is lost must not pass for
    ///   having none.
    init?(pathIfPresent path: String) throws(TLSCredentialError) {
        do {
            // A pipe that nobody fills keeps nobody waiting.
            let descriptor = try FileDescriptor.open(FilePath(path), .readOnly, options: [.closeOnExec, .nonBlocking])
            bytes = try descriptor.closeAfter {
                var bytes: [UInt8] = []
                while bytes.count <= Self.byteLimit {
                    // SAFETY: the closure fills memory that it is lent, and says how much of it.
                    let piece = try unsafe [UInt8](unsafeUninitializedCapacity: 65_536) { buffer, count in
                        count = try unsafe descriptor.read(into: UnsafeMutableRawBufferPointer(buffer))
                    }
                    if piece.isEmpty { break }
                    bytes += piece
                }
                return bytes
            }
        } catch Errno.noSuchFileOrDirectory {
            do {
                try FileDescriptor.open(FilePath(path), .readOnly, options: [.noFollow, .closeOnExec]).close()
            } catch Errno.noSuchFileOrDirectory {
                return nil
            } catch {}
            throw TLSCredentialError("\(path): leads to a file that is not there")
        } catch {
            throw TLSCredentialError("\(path): \(error)")
        }
        guard bytes.count <= Self.byteLimit else { throw TLSCredentialError("\(path): larger than \(Self.byteLimit) bytes") }
        name = path
    }
}
