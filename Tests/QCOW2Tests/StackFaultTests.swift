import Block
import BlockDrivers
import Testing

@testable import QCOW2

/// An image on an image in a window of a file: what fails below fails requests, and nothing else.
@Suite struct `A stack of images` {
    private static let size = 1 << 18

    /// A file with an image of sevens from byte 4096 on.
    private func base() async throws -> [UInt8] {
        let file = RecordingDevice([UInt8](repeating: 0xEE, count: 4096) + (try TestImage.empty(UInt64(Self.size), clusterBits: 12)))
        let image = try await open(file)
        try await image.write(at: 0, from: [UInt8](repeating: 7, count: Self.size).rawBytes, [])
        await image.close()
        return file.bytes
    }

    private func open(_ file: RecordingDevice, isReadOnly: Bool = false) async throws -> QCOW2Image {
        let window = try RawWindow(file, offset: 4096)
        return try await QCOW2Image.open(try await ImageHeader.read(from: window), on: window, .init(isReadOnly: isReadOnly))
    }

    @Test(arguments: [BlockError.Kind.inputOutput, .noSpace])
    func `keeps what it said it had, whichever access fails`(kind: BlockError.Kind) async throws {
        let bytes = try await base()
        #expect(bytes.prefix(4096).allSatisfy { $0 == 0xEE }, "nothing before the window was touched")
        for count in stride(from: 0, to: 40, by: 2) {
            let below = Faults(
                try await open(RecordingDevice(bytes), isReadOnly: true),
                [.init([.read], skip: count, count: 3, error: BlockError(.inputOutput, "as wished"))])
            let top = RecordingDevice(try TestImage.empty(UInt64(Self.size), clusterBits: 12, hasBacking: true))
            let image = try await TestImage.open(top, backing: below)
            top.fail(after: count * 2, as: kind)
            var isKnown = [Bool](repeating: true, count: Self.size)
            var expected = [UInt8](repeating: 7, count: Self.size)
            for step in 0..<24 {
                let range = step * 10_007..<step * 10_007 + (step % 3 == 0 ? 9000 : 1000)
                do {
                    try await image.write(at: UInt64(range.lowerBound), from: [UInt8](repeating: 1, count: range.count).rawBytes, [])
                    expected.replaceSubrange(range, with: repeatElement(1, count: range.count))
                } catch {
                    for index in range { isKnown[index] = false }
                }
                if step == 12 { top.fail(after: nil) }
                // Only what a flush has brought there counts once the image is not written any more.
                if step % 4 == 3 { try? await image.flush() }
            }
            let mayHaveLost = image.metadata.hasFailed
            await image.close()
            #expect(try ReferenceCheck(top.bytes).errors.isEmpty)
            let again = try await TestImage.open(top, backing: try await open(RecordingDevice(bytes), isReadOnly: true))
            let found = try await again.bytes(at: 0, count: Self.size)
            let wrong = (0..<Self.size).filter { found[$0] != expected[$0] && (found[$0] != 7 && found[$0] != 1 || isKnown[$0] && !mayHaveLost) }
            #expect(wrong.isEmpty, "fault \(count): \(wrong.prefix(3))")
            await again.close()
        }
    }
}
