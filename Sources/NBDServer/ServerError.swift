/// Why a server could not start.
public struct ServerError: Error, Equatable, Sendable, CustomStringConvertible {
    public enum Kind: Equatable, Sendable {
        case invalidExport
        /// A name, port or path cannot be bound.
        case cannotListen
        /// `Configuration.willAccept` has thrown.
        case notPrepared
        /// `start()` was called twice, or after the end.
        case alreadyStarted
    }

    public var kind: Kind
    /// One line for people: names the export, or the address and the reason.
    public var description: String

    public init(_ kind: Kind, _ description: String) {
        self.kind = kind
        self.description = description
    }
}
