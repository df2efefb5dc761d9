import CHostIO

/// Memory of this process that nobody uses.
public enum FreeMemory {
    /// Gives it back to the system, where the C library keeps it for whoever asks next (glibc does; elsewhere this does nothing). Takes the locks of
    /// the heap: some milliseconds for each hundred megabytes.
    ///
    /// - Returns: whether there was any.
    @discardableResult
    public static func giveBack() -> Bool { chostio_trim_memory() > 0 }
}
