import NBDProtocol
import NBDTLS
import NIOCore

/// STARTTLS: from clear to encrypted, in the middle of the handshake.
extension ConnectionHandler {
    var tlsPolicy: TLSPolicy {
        // An oldstyle client has no way to ask for it.
        listener.oldstyleExport == nil ? environment.configuration.tlsPolicy : .off
    }

    /// Where TLS is a matter of choice, a client in clear is judged when it first asks for something: until then it may still encrypt.
    var isAdmittedInClear: Bool { tlsPolicy != .optional || peer.tls != .none || environment.admits(peer) }

    /// Sends the last bytes in clear and puts TLS in front of this handler. What arrives from here on, TLS must make sense of.
    func startTLS(after output: [UInt8]) {
        // The client cannot know yet that we agree, so these bytes are not its own, or it is careless: in either case nobody may take them for
        // encrypted ones (S-TLS-12, P-TLS-11).
        guard hasEmptyInbox else { return close(.dataInClearWithStartTLS) }
        guard let credentials = environment.configuration.tls?.credentials.current else { return close(nil) }
        send(output)
        do {
            try install(credentials.makeSession())
        } catch {
            return close(.tlsFailed(TLSFailure.explain(error) ?? "\(error)"))
        }
        readIfWanted()
    }

    /// The client has proved what it can.
    func tlsCompleted() {
        guard let tls, !isClosing else { return }
        do throws(TLSRefusal) {
            peer.prove(try tls.peer())
        } catch {
            return close(.tlsFailed(error.description))
        }
        guard environment.admits(peer) else { return close(.notAdmitted) }
        environment.journal.encrypted(identity, peer)
        continueEncrypted()
    }

    // MARK: Out

    /// Bytes that TLS may have encrypted and the socket not taken. What is encrypted is there twice until all of its reply has left: for a client
    /// that does not read, all that it may hold would be.
    static let encryptedByteCountLimit = 1 << 20
    /// Bytes that are encrypted at a time.
    static let encryptedPieceByteCount = 256 << 10

    func encrypt(_ buffers: [ByteBuffer]) {
        outbox.append(contentsOf: buffers)
        encryptMore()
    }

    /// So many bytes, encrypted, have left.
    func didEncrypt(_ byteCount: Int) {
        encryptedByteCount -= byteCount
        encryptMore()
    }

    private func encryptMore() {
        // A write may complete at once and come back to us.
        guard !isEncrypting else { return }
        isEncrypting = true
        defer { isEncrypting = false }
        while encryptedByteCount < Self.encryptedByteCountLimit, !outbox.isEmpty {
            // Small ones together, a large one in pieces.
            var pieces: [ByteBuffer] = []
            var count = 0
            while count < Self.encryptedPieceByteCount, var first = outbox.popFirst() {
                guard let piece = first.readSlice(length: min(first.readableBytes, Self.encryptedPieceByteCount - count)) else { continue }
                if first.readableBytes > 0 { outbox.prepend(first) }
                count += piece.readableBytes
                pieces.append(piece)
            }
            encryptedByteCount += count
            write(pieces, byteCount: count)
        }
    }
}
