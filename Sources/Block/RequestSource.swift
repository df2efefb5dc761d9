/// Who sends requests to a device, and can be asked to stop for a while: an export (S-BLK-17).
public protocol RequestSource: AnyObject, Sendable {
    /// Starts nothing new; returns when nothing that was started touches the device any more. Does not wait for clients: a request whose
    /// payload is still arriving has not begun (S-DRN-02, S-DRN-07). Calls nest.
    func pause() async

    /// Ends one `pause`; the last one lets requests go on, in order.
    func resume()
}
