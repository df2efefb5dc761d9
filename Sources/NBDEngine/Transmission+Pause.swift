import Block

// A drain: the device is left alone for a while, with the client connected (REFERENCE section 11).
extension Transmission {
    /// Nothing of this client touches the device: no request is being carried out, and no reply names bytes of it.
    public var isQuiet: Bool { isPaused && requestsInFlight == 0 && !hasWork && !replies.hasSegments }

    /// Begins no request until `resume()`. What is in flight goes on; `isQuiet` says when it is over. A request whose payload is still
    /// arriving has not begun, so the client holds nobody up (S-DRN-02, S-DRN-07).
    public mutating func pause() {
        setPaused(true)
        // Replies that are only named would be sent whenever the client reads them; as copies they leave the device alone.
        guard replies.hasSegments else { return }
        let before = replies.memoryByteCount
        replies.copySegments()
        account(since: before)
        if !replies.hasSegments { mapper?.released() }
    }

    /// Requests go on, in order.
    public mutating func resume() {
        setPaused(false)
        proceed()
    }
}
