internal import CHostIO

/// How a TCP socket spreads over time what it sends, taken from it until it is known whether there is a network on the way (Linux).
///
/// Within a host there is no pace to be found: a connection sends what the windows allow. BBR sets a timer for each piece, and a socket that has
/// begun with it keeps those timers whatever it is told later. The sockets of a listener's clients have begun before anybody sees them: so the
/// pace is taken from the listener, and given back to those that lead out of the host.
public struct SocketPace: Sendable {
    private let pace: chostio_pace

    /// - Parameter descriptor: a socket that will listen or connect.
    /// - Returns: nil if it is not one of TCP or the system refuses; then nothing has changed.
    public init?(takenFrom descriptor: Int32) {
        pace = chostio_take_pace(descriptor)
        guard pace.name.0 != 0 else { return nil }
    }

    /// - Parameter descriptor: the socket when it is connected, or one that was accepted from it. Within this host it goes on without pace.
    public func giveBack(to descriptor: Int32) { chostio_give_pace_back(descriptor, pace) }
}
