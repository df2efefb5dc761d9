import Block
import BlockDeviceConformance
import BlockDrivers
import Testing

@testable import QCOW2

@Suite struct `Images obey the laws of a device` {
    struct Shape: Sendable, CustomTestStringConvertible {
        var name: String
        var clusterBits = 16
        var refcountOrder = 4
        var extended = false
        var version: UInt32 = 3
        var byteCount: UInt64 = 300_000
        var hasBacking = false
        var testDescription: String { name }
    }

    static let shapes = [
        Shape(name: "clusters of 64 KiB"),
        Shape(name: "clusters of 512 bytes", clusterBits: 9, refcountOrder: 3),
        Shape(name: "clusters of 2 MiB", clusterBits: 21, refcountOrder: 6),
        Shape(name: "version 2 over a backing file", version: 2, hasBacking: true),
        Shape(name: "over a shorter backing file", clusterBits: 12, hasBacking: true),
        Shape(name: "subclusters over a backing file", clusterBits: 16, extended: true, hasBacking: true),
        Shape(name: "a terabyte", byteCount: 1 << 40),
    ]

    private func image(_ shape: Shape) throws -> [UInt8] {
        try TestImage.empty(
            shape.byteCount, clusterBits: shape.clusterBits, refcountOrder: shape.refcountOrder, extended: shape.extended,
            version: shape.version, hasBacking: shape.hasBacking)
    }

    @Test(arguments: shapes)
    func `on a file in memory`(shape: Shape) async throws {
        try await checkConformance(steps: 60) {
            try await TestImage.open(
                RecordingDevice(try image(shape)), backing: shape.hasBacking ? PatternDevice(byteCount: shape.byteCount - 50_001) : nil)
        }
    }

    @Test(arguments: shapes)
    func `on a file of the host, mapped`(shape: Shape) async throws {
        let bytes = try image(shape)
        try await checkConformance(steps: 60) {
            let file = try await TemporaryFile.open(bytes)
            return try await QCOW2Image.open(
                try await ImageHeader.read(from: file), on: file,
                backing: shape.hasBacking ? PatternDevice(byteCount: shape.byteCount - 50_001) : nil)
        }
    }

    @Test func `read-only`() async throws {
        try await checkConformance {
            try await TestImage.open(RecordingDevice(try TestImage.empty(300_000)), .init(isReadOnly: true))
        }
    }

    @Test func `an overlay on a window on an image`() async throws {
        try await checkConformance(steps: 60) {
            let below = try await TestImage.open(RecordingDevice(try TestImage.empty(900_000, clusterBits: 12)))
            try await below.write(at: 0, from: [UInt8](repeating: 7, count: 900_000).rawBytes, [])
            let window = try RawWindow(below, offset: 4321, byteCount: 600_000)
            return try await TestImage.open(RecordingDevice(try TestImage.empty(700_000, hasBacking: true)), backing: window)
        }
    }
}

/// A growable file of the host without a name.
enum TemporaryFile {
    static func open(_ bytes: [UInt8]) async throws -> RawFile {
        let path = "/tmp/qcow2-test-\(UInt64.random(in: 0 ... .max))"
        try write([], to: path)
        defer { remove(path) }
        let file = try await RawFile.open(path, RawOptions(isLocked: false, isGrowable: true))
        try await file.write(at: 0, from: bytes.rawBytes, [])
        // Opened with its size, as an image is.
        let again = try await RawFile.open(path, RawOptions(isLocked: false, isGrowable: true))
        await file.close()
        return again
    }
}
