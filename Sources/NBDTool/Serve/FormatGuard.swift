import Block

/// Recognises image formats by their first bytes. Never to choose a driver (a guest can write those bytes): only to say that serving such
/// a file as raw is probably not what was meant.
enum FormatGuard {
    private static let byteCount = 512

    private static let magics: [(format: String, offset: Int, bytes: [UInt8])] = [
        ("qcow2", 0, [0x51, 0x46, 0x49, 0xFB]),
        ("qed", 0, Array("QED\0".utf8)),
        ("vmdk", 0, Array("KDMV".utf8)),
        ("vmdk", 0, Array("COWD".utf8)),
        ("vmdk", 0, Array("# Disk DescriptorFile".utf8)),
        ("vdi", 64, [0x7F, 0x10, 0xDA, 0xBE]),
        ("vhdx", 0, Array("vhdxfile".utf8)),
        ("vpc", 0, Array("conectix".utf8)),
        ("parallels", 0, Array("WithoutFreeSpace".utf8)),
        ("parallels", 0, Array("WithouFreSpacExt".utf8)),
    ]

    /// QEMU's name of the format that `device` seems to hold; nil for none, and for a device that is too small or cannot be read.
    static func format(of device: any BlockDevice) async -> String? {
        guard device.info.byteCount >= UInt64(byteCount) else { return nil }
        let count = max(byteCount, Int(device.info.blockSize.minimum))
        guard UInt64(count) <= device.info.byteCount, let head = try? await device.bytes(at: 0, count: count) else { return nil }
        return format(of: head)
    }

    static func format(of head: [UInt8]) -> String? {
        magics.first { head.dropFirst($0.offset).starts(with: $0.bytes) }?.format
    }
}
