/// The numbers that open each kind of message (PROTOCOL 1.1).
public enum Magic {
    /// "NBDMAGIC", the first eight bytes of every connection.
    public static let initial: UInt64 = 0x4E42_444D_4147_4943
    /// "IHAVEOPT": the newstyle greeting, and the start of every option.
    public static let option: UInt64 = 0x4948_4156_454F_5054
    public static let oldstyle: UInt64 = 0x0000_4202_8186_1253
    public static let optionReply: UInt64 = 0x0003_E889_0455_65A9
    public static let request: UInt32 = 0x2560_9513
    public static let simpleReply: UInt32 = 0x6744_6698
    public static let structuredReply: UInt32 = 0x668E_33EF
    public static let extendedRequest: UInt32 = 0x21E4_1C71
    public static let extendedReply: UInt32 = 0x6E8A_278C
}

/// TCP port of NBD, assigned by IANA.
public let defaultPort = 10809

/// The string rule of the protocol (P-GEN-01): UTF-8 without NUL, at most this many bytes.
public let stringByteCountLimit = 4096

/// The largest payload of a READ or WRITE, in bytes (S-LIM-01). Every client can live with it, none is promised more.
public let payloadByteCountLimit: UInt32 = 32 << 20
