import NBDProtocol

/// Any text as a URI. Promises: no trap; what is understood prints as a URI that means the same; what is not gets a readable reason.
@Sendable func fuzzURI(_ input: [UInt8]) {
    let text = String(decoding: input, as: UTF8.self)
    do throws(NBDURIError) {
        let uri = try NBDURI(parsing: text)
        let printed = uri.description
        precondition(printed.utf8.allSatisfy { (0x21...0x7E).contains($0) }, "prints what a shell or a log may stumble over")
        do throws(NBDURIError) {
            let again = try NBDURI(parsing: printed)
            precondition(again == uri, "'\(printed)' means something else")
            precondition(again.description == printed, "prints differently the second time")
        } catch {
            preconditionFailure("prints '\(printed)', which is refused: \(error)")
        }
    } catch {
        let reason = error.description
        precondition(!reason.isEmpty && !reason.unicodeScalars.contains { $0.properties.generalCategory == .control }, "reason: \(reason)")
        precondition(reason.utf8.count < 1000, "a reason of \(reason.utf8.count) bytes")
    }
}
