@testable import NBDProtocol

/// Drives a `ServerHandshake` as the shell does, with a registry of its own.
struct HandshakeHarness: ~Copyable {
    var handshake: ServerHandshake
    var exports: [ExportDescription]
    var output: [UInt8] = []
    var inbox: [UInt8] = []
    /// Set once the conversation is over.
    var ending: ServerHandshake.Action?
    /// The machine has said that TLS begins.
    var isStartingTLS = false

    static let disk = ExportDescription(
        id: 1, name: "disk", text: "a disk", byteCount: 1 << 20,
        flags: [.hasFlags, .flush, .fua, .trim, .writeZeroes, .fastZero, .cache, .multiConn])
    static let blocky = ExportDescription(
        id: 2, name: "blocky", byteCount: 4 << 20, flags: [.hasFlags, .readOnly],
        blockSizes: BlockSizes(minimum: 512, preferred: 65536, maximumPayload: 1 << 20),
        contexts: [
            .baseAllocation, MetaContext(id: 1, name: "qemu:allocation-depth"), MetaContext(id: 2, name: "qemu:dirty-bitmap:b0"),
            MetaContext(id: 3, name: "qemu:dirty-bitmap:b1"),
        ])

    init(
        exports: [ExportDescription] = [disk, blocky], limits: HandshakeLimits = HandshakeLimits(), isListable: Bool = true,
        tls: TLSPolicy = .off, trace: Tracer? = nil
    ) {
        handshake = ServerHandshake(limits: limits, isListable: isListable, tls: tls, trace: trace)
        self.exports = exports
        handshake.start(output: &output)
    }

    /// Sends bytes in pieces of at most `pieces` and returns what came back.
    @discardableResult
    mutating func send(_ bytes: [UInt8], pieces: Int = .max) -> [UInt8] {
        let start = output.count
        var rest = bytes[...]
        while !rest.isEmpty {
            inbox += rest.prefix(pieces)
            rest = rest.dropFirst(pieces)
            drive()
        }
        return Array(output[start...])
    }

    private mutating func drive() {
        while ending == nil {
            let bytes = inbox
            var (consumed, action) = handshake.receive(bytes.span.bytes, output: &output)
            inbox.removeFirst(consumed)
            answering: while true {
                switch action {
                case .lookUp(let name):
                    let export = exports.first { $0.name == name }
                    action = handshake.answer(export, output: &output)
                case .list:
                    let all = exports
                    action = handshake.answer(list: all, output: &output)
                case .startTLS:
                    isStartingTLS = true
                    break answering
                case .transmit, .close:
                    ending = action
                    break answering
                case .read: break answering
                }
            }
            if consumed == 0 { return }
        }
    }

    /// As if TLS were up: from now on all bytes are encrypted.
    mutating func encrypt() {
        precondition(isStartingTLS, "nobody has asked for TLS")
        isStartingTLS = false
        handshake.tlsStarted()
    }

    var session: Session? { if case .transmit(let session) = ending { session } else { nil } }

    /// Takes the greeting away and sends the flags of a modern client.
    mutating func begin(flags: UInt32 = 3) {
        send(bigEndian(flags))
        output = []
    }

    /// Sends one option and gives the replies.
    @discardableResult
    mutating func option(_ number: UInt32, _ data: [UInt8] = [], pieces: Int = .max) -> [Reply] {
        Reply.parse(send(Self.optionBytes(number, data), pieces: pieces))
    }

    @discardableResult
    mutating func option(_ type: OptionType, _ data: [UInt8] = []) -> [Reply] { option(type.rawValue, data) }

    static func optionBytes(_ number: UInt32, _ data: [UInt8]) -> [UInt8] {
        Array("IHAVEOPT".utf8) + bigEndian(number) + bigEndian(UInt32(data.count)) + data
    }

    struct Reply: Equatable {
        var option: UInt32
        var type: OptionReplyType
        var data: [UInt8]

        /// Splits a stream of option replies; traps (fails the test) when it is not one.
        static func parse(_ bytes: [UInt8]) -> [Reply] {
            var replies: [Reply] = []
            var rest = bytes[...]
            while !rest.isEmpty {
                precondition(Array(rest.prefix(8)) == bigEndian(UInt64(0x0003_E889_0455_65A9)), "not an option reply: \(rest.prefix(20))")
                let fields = rest.dropFirst(8)
                let length = Int(number(fields.dropFirst(8).prefix(4)))
                replies.append(
                    Reply(
                        option: UInt32(number(fields.prefix(4))),
                        type: OptionReplyType(rawValue: UInt32(number(fields.dropFirst(4).prefix(4)))),
                        data: Array(rest.dropFirst(20).prefix(length))))
                rest = rest.dropFirst(20 + length)
            }
            return replies
        }

        var text: String { String(decoding: data, as: UTF8.self) }
    }
}

func bigEndian<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    stride(from: T.bitWidth - 8, through: 0, by: -8).map { UInt8(truncatingIfNeeded: value >> T($0)) }
}

func number(_ bytes: some Collection<UInt8>) -> UInt64 { bytes.reduce(0) { $0 << 8 | UInt64($1) } }

func counted(_ text: String) -> [UInt8] { bigEndian(UInt32(text.utf8.count)) + Array(text.utf8) }

/// Data of INFO and GO.
func infoData(_ name: String, _ types: [UInt16] = []) -> [UInt8] {
    counted(name) + bigEndian(UInt16(types.count)) + types.flatMap { bigEndian($0) }
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
func metaData(_ name: String, _ queries: [String] = []) -> [UInt8] {
    counted(name) + bigEndian(UInt32(queries.count)) + queries.flatMap(counted)
}
