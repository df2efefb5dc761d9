import Block
import HostIO
import Synchronization
import Testing

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// A device over one file, as `RawFile` is, but that ranges lie in two pieces, as in a format.
final class FileDevice: BlockDevice {
    let info: DeviceInfo
    let file: HostFile
    private let placesAreFixed: Bool
    private let end: UInt64
    private let account = Account()
    /// Of what it was told, by its mappers.
    var written: [ByteRange] { account.written.withLock { $0 } }

    private final class Account: Sendable {
        let written = Mutex<[ByteRange]>([])
    }

    /// - Parameter end: ranges that start before it lie in one piece.
    init(_ file: HostFile, placesAreFixed: Bool = false, wholeUpTo end: UInt64 = 0) {
        self.file = file
        self.placesAreFixed = placesAreFixed
        self.end = end
        info = DeviceInfo(byteCount: file.byteCount, abilities: .allNative, isReadOnly: false)
    }

    func read(at offset: UInt64, into buffer: inout MutableRawSpan) async throws(BlockError) {
        do throws(HostError) { try await file.read(at: offset, into: &buffer) } catch { throw BlockError(.inputOutput, "\(error)") }
    }

    func makeMapper() -> sending (any RangeMapper)? { Mapper(file, placesAreFixed, wholeUpTo: end, account) }

    private final class Mapper: RangeMapper {
        let file: HostFile
        let placesAreFixed: Bool
        let end: UInt64
        let account: Account

        init(_ file: HostFile, _ placesAreFixed: Bool, wholeUpTo end: UInt64, _ account: Account) {
            self.account = account
            self.file = file
            self.placesAreFixed = placesAreFixed
            self.end = end
        }

        func mapRead(_ range: ByteRange, into segments: inout SegmentList) -> Bool {
            let half = range.start < end ? 0 : range.count / 2
            if half > 0 { segments.append(.file(file, offset: range.start, count: Int(half))) }
            segments.append(.file(file, offset: range.start + half, count: Int(range.count - half)))
            return true
        }

        func mapWrite(_ range: ByteRange, into segments: inout SegmentList) -> Bool {
            segments.append(.file(file, offset: range.start, count: Int(range.count)))
            return true
        }

        func didWrite(_ range: ByteRange) { account.written.withLock { $0.append(range) } }
    }
}

/// Lends `body` a file with these bytes, which is gone afterwards.
func withFile(_ contents: [UInt8], isDirect: Bool = false, _ body: (HostFile) async throws -> Void) async throws {
    var path = Array("/tmp/engine.XXXXXX".utf8CString)
    let descriptor = path.withUnsafeMutableBufferPointer { mkstemp($0.baseAddress!) }
    #expect(write(descriptor, contents, contents.count) == contents.count)
    close(descriptor)
    let name = String(decoding: path.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    defer { unlink(name) }
    try await body(try await HostFile.open(name, .init(isDirect: isDirect)))
}
