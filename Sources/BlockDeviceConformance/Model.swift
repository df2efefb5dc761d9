internal import Block

/// A window of a device beside an array that ought to be equal, and random requests to both.
final class Model {
    private let laws: Laws
    private let window: ByteRange
    private let mapper: (any RangeMapper)?
    private var expected: [UInt8]
    /// Kept from request to request, as the engine does.
    private var segments = SegmentList()

    init(of laws: Laws, _ window: ByteRange) async throws {
        self.laws = laws
        self.window = window
        mapper = laws.device.makeMapper()
        expected = try await laws.read(window.start, window.count)
    }

    private enum Request: CaseIterable {
        case read, write, writeZeroes, discard, flush, prefetch, status, mappedRead, mappedWrite
    }

    func run(_ steps: Int) async throws {
        guard window.count >= laws.minimum else { return }
        for step in 0..<steps {
            if let request = Request.allCases.randomElement(using: &laws.random) { try await perform(request) }
            if step % 8 == 7 { try await compare(window) }
        }
        try await laws.must("a flush") { try await laws.device.flush() }
        try await compare(window)
    }

    private func perform(_ request: Request) async throws {
        let range = randomRange()
        switch request {
        case .read: try await compare(range)
        case .flush: try await laws.must("a flush") { try await laws.device.flush() }
        case .prefetch: try await prefetch(range)
        case .status: try await checkStatus(of: range)
        case .mappedRead: try await checkMappedRead(range)
        case .write, .writeZeroes, .discard, .mappedWrite:
            // What a read-only device does with these is another law's business.
            guard !laws.info.isReadOnly else { return }
            switch request {
            case .write: try await write(range)
            case .writeZeroes: try await writeZeroes(range)
            case .discard: try await discard(range)
            default: try await checkMappedWrite(range)
            }
        }
    }

    private func write(_ range: ByteRange) async throws {
        let bytes = randomBytes(range.count)
        let options: WriteOptions = Int.random(in: 0..<4, using: &laws.random) == 0 ? .durable : []
        try await laws.must("writing \(range)") { try await laws.write(bytes, at: range.start, options) }
        store(bytes, range)
    }

    private func writeZeroes(_ range: ByteRange) async throws {
        let options = WriteOptions(rawValue: UInt8.random(in: 0..<8, using: &laws.random))
        guard try await laws.zero(range, options) else { return try await compare(range) }
        store([UInt8](repeating: 0, count: Int(range.count)), range)
    }

    private func discard(_ range: ByteRange) async throws {
        try await laws.must("discarding \(range)") { try await laws.device.discard(range) }
        // Undefined from here on: whatever is there now is right.
        store(try await laws.read(range.start, range.count), range)
    }

    private func prefetch(_ range: ByteRange) async throws {
        try await laws.must("prefetching \(range)") { try await laws.device.prefetch(range) }
        try await compare(range)
    }

    // MARK: Laws

    private func compare(_ range: ByteRange) async throws {
        let bytes = try await laws.read(range.start, range.count)
        guard laws.keepsWrites, !areEqual(bytes, Array(expected[indices(range)])),
            let index = bytes.indices.first(where: { bytes[$0] != self[range.start + UInt64($0)] })
        else { return }
        let offset = range.start + UInt64(index)
        try laws.law(false, "the byte at \(offset) is \(bytes[index]) instead of \(self[offset]), read in \(range)")
    }

    private func checkStatus(of range: ByteRange) async throws {
        for limit in [1, 2, 131_072] {
            var rest = range
            while !rest.isEmpty {
                var list = ExtentList(byteCountLimit: rest.count, extentCountLimit: limit)
                try await laws.must("the status of \(rest)") { try await laws.device.status(of: rest, into: &list) }
                try laws.law(list.byteCount > 0, "the status of \(rest) says nothing")
                for extent in list.extents {
                    let run = rest.prefix(extent.count)
                    if extent.status.contains(.zero), laws.keepsWrites {
                        let isZero = expected.rawBytes.extracting(indices(run)).isZero
                        try laws.law(isZero, "\(run) is said to read as zeroes, and does not")
                    }
                    rest = rest.dropFirst(extent.count)
                }
                // One answer is enough for a list of one: going on would take a request for each run.
                if limit == 1 { break }
            }
        }
    }

    /// mapped ≡ awaited.
    private func checkMappedRead(_ range: ByteRange) async throws {
        segments.removeAll()
        guard let mapper else { return }
        guard mapper.mapRead(range, into: &segments) else {
            return try laws.law(segments.isEmpty, "a mapper that declines \(range) appends nothing")
        }
        let count = segments.all.reduce(0) { $0 + $1.byteCount }
        try laws.law(UInt64(count) == range.count, "\(range) is mapped to \(count) bytes")
        // What is not there at once is awaited, which the comparison does anyway.
        guard let bytes = readNow(count) else { return }
        let awaited = try await laws.read(range.start, range.count)
        try laws.law(areEqual(bytes, awaited), "\(range) is not the same mapped and awaited")
    }

    /// The bytes of all segments, or nil when one would have to wait.
    private func readNow(_ count: Int) -> [UInt8]? {
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 16)
        defer { unsafe memory.deallocate() }
        // SAFETY: the span is gone before the memory is, and counts what was filled.
        var output = unsafe OutputRawSpan(buffer: memory, initializedCount: 0)
        guard segments.readNow(into: &output) else { return nil }
        _ = unsafe output.finalize(for: memory)
        return unsafe [UInt8](memory)
    }

    private func checkMappedWrite(_ range: ByteRange) async throws {
        segments.removeAll()
        guard let mapper else { return }
        guard mapper.mapWrite(range, into: &segments) else {
            return try laws.law(segments.isEmpty, "a mapper that declines \(range) appends nothing")
        }
        let bytes = randomBytes(range.count)
        var done = 0
        var isDone = true
        for segment in segments.all where isDone {
            isDone = segment.writeNow(from: bytes.rawBytes.extracting(done..<done + segment.byteCount))
            done += segment.byteCount
        }
        try laws.law(done == bytes.count || !isDone, "a write to \(range) is mapped to \(done) bytes")
        // What does not go at once is awaited, with the same bytes.
        if !isDone { try await laws.must("writing \(range)") { try await laws.write(bytes, at: range.start, []) } }
        store(bytes, range)
        try await compare(range)
    }

    // MARK: Chance

    /// A range of the window that the device takes: short ones often, boundaries more often than chance would have it.
    private func randomRange() -> ByteRange {
        let blocks = window.count / laws.minimum
        let longest = min(blocks, UInt64(laws.info.blockSize.maximum) / laws.minimum)
        let length =
            switch Int.random(in: 0..<24, using: &laws.random) {
            case 0..<4: UInt64(1)
            // Seldom: they cover up what went wrong before.
            case 4: longest
            case 5..<8: UInt64.random(in: 1...longest, using: &laws.random)
            default: UInt64.random(in: 1...min(longest, max(1, 9000 / laws.minimum)), using: &laws.random)
            }
        let start =
            switch Int.random(in: 0..<5, using: &laws.random) {
            case 0: UInt64(0)
            case 1: blocks - length
            case 2: min(blocks - length, UInt64.random(in: 0...blocks, using: &laws.random) & ~4095)
            default: UInt64.random(in: 0...blocks - length, using: &laws.random)
            }
        return window.dropFirst(start * laws.minimum).prefix(length * laws.minimum)
    }

    /// Zeroes, one byte again and again, or noise.
    private func randomBytes(_ count: UInt64) -> [UInt8] {
        switch Int.random(in: 0..<4, using: &laws.random) {
        case 0:
            return [UInt8](repeating: 0, count: Int(count))
        case 1:
            return [UInt8](repeating: .random(in: 1...255, using: &laws.random), count: Int(count))
        default:
            var bytes = [UInt8](repeating: 1, count: Int(count))
            var span = bytes.mutableSpan
            // SAFETY: every bit pattern is a byte.
            var raw = unsafe span.mutableBytes
            for word in 0..<Int(count / 8) { raw.storeBytes(of: laws.random.next(), toByteOffset: word * 8, as: UInt64.self) }
            return bytes
        }
    }

    private func store(_ bytes: [UInt8], _ range: ByteRange) {
        expected.replaceSubrange(indices(range), with: bytes)
    }

    private func indices(_ range: ByteRange) -> Range<Int> {
        let start = Int(range.start - window.start)
        return start..<start + Int(range.count)
    }

    private subscript(offset: UInt64) -> UInt8 { expected[Int(offset - window.start)] }
}
