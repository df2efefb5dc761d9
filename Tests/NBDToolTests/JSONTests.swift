import Testing

@testable import NBDTool

@Suite struct `JSON writer` {
    @Test(arguments: [
        ("plain", #""plain""#), ("a\"b\\c/", #""a\"b\\c/""#), ("\n\r\t\u{0}\u{1F}\u{7F}", #""\n\r\t\u0000\u001f\u007f""#),
        ("é€🚀", "\"é€🚀\""),
        ("\r\n", #""\r\n""#), ("", "\"\""),
    ])
    func `escapes strings`(text: String, expected: String) {
        #expect(JSON.string(text).text == expected)
    }

    @Test func `keeps the order of members, and nests`() {
        let value = JSON.object([
            ("z", .integer(.max)), ("a", .array([.bool(true), .bool(false), .array([]), .object([])])), ("q\"", .number(0.0390625)),
        ])
        #expect(
            value.text == """
                {
                \t"z": 18446744073709551615,
                \t"a": [
                \t\ttrue,
                \t\tfalse,
                \t\t[],
                \t\t{}
                \t],
                \t"q\\"": 0.0390625
                }
                """)
    }

    @Test func `has no number for what is none`() {
        #expect(JSON.number(.infinity).text == "null")
        #expect(JSON.number(.nan).text == "null")
    }
}
