import NBDProtocol

@testable import NBDTool

/// A configuration file: TOML, or JSON when the first byte is a brace. Promises: no trap; what is accepted makes a plan or is refused with a
/// reason; reading twice gives the same.
@Sendable func fuzzConfiguration(_ input: [UInt8]) {
    let path = input.first == UInt8(ascii: "{") ? "fuzz.json" : "fuzz.toml"
    expectReason {
        let configuration = try Configuration(contents: input, path: path)
        let again = try Configuration(contents: input, path: path)
        precondition(again == configuration, "reads differently the second time")
        var options = ServeOptions(style: .nbd)
        options.exports = ["name=of the command line,memory=1M"]
        let plan = try ServePlan(options, configuration: configuration)
        _ = plan.access.warnings(exports: plan.exports.map(\.name))
    }
}

/// `body` ends well, or with an error that a person can read.
func expectReason(_ body: () throws -> Void) {
    do {
        try body()
    } catch let error as ToolError {
        precondition(!error.message.isEmpty, "no reason")
        precondition(error.message.utf8.count < 1 << 20, "a reason of \(error.message.utf8.count) bytes")
    } catch {
        preconditionFailure("an error that nobody expects: \(error)")
    }
}
