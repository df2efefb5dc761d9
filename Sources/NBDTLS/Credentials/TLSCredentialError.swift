/// Why credentials cannot be used. One line for people, which names the file at fault.
public struct TLSCredentialError: Error, Equatable, Sendable, CustomStringConvertible {
    public var description: String
    public init(_ description: String) { self.description = description }
}
