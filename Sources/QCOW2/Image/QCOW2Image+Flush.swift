public import Block

extension QCOW2Image {
    public func flush() async throws(BlockError) {
        guard !options.isReadOnly else { return }
        try metadata.checkHealthy()
        try await metadata.commit()
    }
}
