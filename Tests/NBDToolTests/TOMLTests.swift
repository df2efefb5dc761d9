import Testing

@testable import NBDTool

/// The document as JSON, or `line:column reason`.
private func read(_ text: String) -> String {
    do {
        return TOMLValue.table(try TOMLReader.read(text)).json
    } catch {
        return "\(error.line):\(error.column) \(error.reason)"
    }
}

@Suite struct `A TOML document` {
    @Test(arguments: [
        ("", #"{}"#), ("\n\r\n # only a comment\n\t", #"{}"#), ("a=1", #"{"a":1}"#), ("\ta = 1 # one\r\nb = 2", #"{"a":1,"b":2}"#),
        ("a-_9 = 1\n1234 = 2\n3.14 = 3", #"{"1234":2,"3":{"14":3},"a-_9":1}"#),
        (#""a b" = 1"# + "\n" + #"'a "b"' = 2"# + "\n\"\" = 3\n\"\\u00e9\" = 4", #"{"":3,"a \"b\"":2,"a b":1,"é":4}"#),
        ("a . b.\"c.d\" = 1\na.b.e = 2", #"{"a":{"b":{"c.d":1,"e":2}}}"#),
        ("[a]\nx=1\n[b . 'c']\ny=2\n[ b ]\nz=3", #"{"a":{"x":1},"b":{"c":{"y":2},"z":3}}"#),
        ("[a.b.c]\n[a]\nd.e = 1\n[a.d.f]\n", #"{"a":{"b":{"c":{}},"d":{"e":1,"f":{}}}}"#),
        ("[[a]]\nx=1\n[[a]]\n[a.b]\ny=2\n[[a.c]]\n[[a.c]]", #"{"a":[{"x":1},{"b":{"y":2},"c":[{},{}]}]}"#),
        ("a = []", #"{"a":[]}"#), ("a = [ # c\n 1, 'x' # d\n , [ ], {b=1}\n,]", #"{"a":[1,"x",[],{"b":1}]}"#),
        ("a = {}\nb = { c = 1, d.e = 2, d.f = {g=[\n1]} }", #"{"a":{},"b":{"c":1,"d":{"e":2,"f":{"g":[1]}}}}"#),
        ("a = true\nb=false", #"{"a":true,"b":false}"#),
    ])
    func `is read`(text: String, json: String) {
        #expect(read(text) == json)
    }

    @Test(arguments: [
        ("0", "0"), ("+0", "0"), ("-0", "0"), ("-17", "-17"), ("+99", "99"), ("1_000", "1000"), ("1_2_3", "123"),
        ("0xDEAD_beef", "3735928559"),
        ("0o755", "493"), ("0b1101_0110", "214"), ("0x00", "0"), ("9223372036854775807", "9223372036854775807"),
        ("-9223372036854775808", "-9223372036854775808"), ("0x7fffffffffffffff", "9223372036854775807"), ("1.0", "1.0"), ("-0.01", "-0.01"),
        ("5e+2", "500.0"), ("1E06", "1000000.0"), ("-2e-2", "-0.02"), ("6.626e-3", "0.006626"), ("9_1.4_5", "91.45"), ("0e0", "0.0"),
    ])
    func `has numbers`(text: String, json: String) {
        #expect(read("a = \(text)") == #"{"a":\#(json)}"#)
    }

    @Test(arguments: [
        "01", "-01", "+", "-", "_1", "1_", "1__2", "0x", "0x_1", "-0x1", "+0b1", "0xG", "0X1", "0o8", "0b2", "1.", ".5", "1._5", "1_.5",
        "1e", "1e_5", "1.e5",
        "01.5", "1.2.3", "1e5.0", "1e5e5", "++1", "9223372036854775808", "-9223372036854775809", "0xffffffffffffffff", "1e999", "True",
        "yes", "a", "١",
        "1:2", "0b", "e5",
    ])
    func `takes no other numbers`(text: String) {
        #expect(read("\na = \(text)").hasPrefix("2:5 "))
    }

    @Test(arguments: [
        (#""""#, ""), (#""x\b\t\n\f\r\"\\y""#, "x\u{8}\t\n\u{C}\r\"\\y"), (#""\u00E9\U0001F600""#, "é😀"), (#"'\n "x"'"#, #"\n "x""#),
        (#"''"#, ""),
        ("\"\"\"\"\"\"", ""), ("\"\"\"\na\r\nb\"\"\"", "a\nb"), ("\"\"\"a\"b\"\"c\"\"\"", "a\"b\"\"c"), ("\"\"\"\"a\"\"\"\"\"", "\"a\"\""),
        ("\"\"\"a \\\n\n  \r\n\t b\\ \n\"\"\"", "a b"), ("\"\"\"\\\"\"\"\\\"\"\"\"", "\"\"\"\""), ("'''\n\\'it''s\n'''''", "\\'it''s\n''"),
        ("'''\n\n'''", "\n"),
        ("\"\t\"", "\t"), ("'é€😀'", "é€😀"), ("\"\"\"\"\"\"\"\"", "\"\""),
    ])
    func `has strings`(text: String, string: String) {
        #expect(read("a = \(text)") == #"{"a":\#(JSON.string(string).text)}"#)
    }

    @Test(arguments: [
        ("a", "1:2 expected '=', found the end of the file"), ("a = ", "1:5 expected a value, found the end of the file"),
        ("x=1\na =\n", "2:4 expected a value, found the end of the line"), ("a =\r\n", "1:4 expected a value, found the end of the line"),
        ("= 1", "1:1 expected a key, found '='"),
        ("a = 1 b = 2", "1:7 expected the end of the line, found 'b'"), ("a = 1,", "1:6 expected the end of the line, found ','"),
        ("a.  = 1", "1:5 expected a key, found '='"), ("é = 1", "1:1 expected a key, found 'é'"),
        ("\u{FEFF}a = 1", "1:1 expected a key, found '?'"),
        ("'é' 1", "1:5 expected '=', found '1'"), ("a = 1\n  a = 2", "2:3 'a' is given twice, first in line 1"),
        ("a = 1\n\"\\u0061\" = 2", "2:1 'a' is given twice, first in line 1"),
        ("a = 1\na.b = 2", "2:1 'a' is given twice, first in line 1"),
        ("a.b = 1\na = 2", "2:1 'a' is given twice, first in line 1"), ("[a]\n[a]", "2:2 'a' is given twice, first in line 1"),
        ("[a]\nb.c = 1\n[a.b]", "3:4 'b' is given twice, first in line 2"),
        ("[a.b.c]\n[a]\nb.d = 1", "3:1 'b' is given twice, first in line 1"),
        ("[a.b.c]\n[a]\nb.c.d = 1", "3:1 'b' is given twice, first in line 1"), ("[a]\n[[a]]", "2:3 'a' is given twice, first in line 1"),
        ("[[a]]\n[a]", "2:2 'a' is given twice, first in line 1"), ("a = []\n[[a]]", "2:3 'a' is given twice, first in line 1"),
        ("a = {}\n[a]", "2:2 'a' is given twice, first in line 1"), ("a = {b = 1, b = 2}", "1:13 'b' is given twice, first in line 1"),
        ("a = {b.c = 1, b = 2}", "1:15 'b' is given twice, first in line 1"),
        ("a = {b = {}, b.c = 2}", "1:14 'b' is given twice, first in line 1"),
        ("a = {b = 1}\n[a.c]", "2:2 'a' cannot be added to: it has its value since line 1"),
        ("a = [{}]\n[a.c]", "2:2 'a' cannot be added to: it has its value since line 1"),
        ("a = 1\n[a.c]", "2:2 'a' cannot be added to: it has its value since line 1"),
        ("[[a]]\na=1\n[[a.a]]", "3:5 'a' is given twice, first in line 2"),
        ("[a", "1:3 expected ']', found the end of the file"), ("[a\n]", "1:3 expected ']', found the end of the line"),
        ("[]", "1:2 expected a key, found ']'"), ("[a.]", "1:4 expected a key, found ']'"),
        ("[[a]", "1:5 expected ']]', found the end of the file"),
        ("[[a] ]", "1:5 expected ']]', found ' '"), ("[ [a]]", "1:3 expected a key, found '['"),
        ("[a] b = 1", "1:5 expected the end of the line, found 'b'"),
        ("a = [1 2]", "1:8 expected ',' or ']', found '2'"), ("a = [,]", "1:6 expected a value, found ','"),
        ("a = [1,,]", "1:8 expected a value, found ','"),
        ("a = [1", "1:7 expected ',' or ']', found the end of the file"), ("a = [", "1:6 expected a value, found the end of the file"),
        ("a = {b = 1,}", "1:12 expected a key, found '}'"), ("a = {b = 1\n}", "1:11 expected ',' or '}', found the end of the line"),
        ("a = {b = 1 # c\n}", "1:12 expected ',' or '}', found '#'"), ("a = {", "1:6 expected a key, found the end of the file"),
        ("a = {b}", "1:7 expected '=', found '}'"), ("a = \"b", "1:5 the string that begins here has no end"),
        ("a = 'b\n'", "1:5 the string that begins here has no end"), ("a = \"\"\"b\"\"", "1:5 the string that begins here has no end"),
        ("a = \"b\\\"", "1:5 the string that begins here has no end"), ("a = '''b'", "1:5 the string that begins here has no end"),
        ("a = \"x\\q\"", "1:7 unknown escape: a backslash is written '\\\\', or the string in single quotes"),
        ("a = \"\\", "1:6 unknown escape: a backslash is written '\\\\', or the string in single quotes"),
        ("a = \"\\\n\"", "1:6 unknown escape: a backslash is written '\\\\', or the string in single quotes"),
        ("a = \"\"\"\\ x\"\"\"", "1:8 unknown escape: a backslash is written '\\\\', or the string in single quotes"),
        ("a = \"\\u12\"", "1:6 expected 4 hexadecimal digits of a Unicode scalar value"),
        ("a = \"\\uD800\"", "1:6 expected 4 hexadecimal digits of a Unicode scalar value"),
        ("a = \"\\u+123\"", "1:6 expected 4 hexadecimal digits of a Unicode scalar value"),
        ("a = \"\\U00110000\"", "1:6 expected 8 hexadecimal digits of a Unicode scalar value"),
        ("a = \"\\u", "1:6 expected 4 hexadecimal digits of a Unicode scalar value"),
        ("\"\"\"a\"\"\" = 1", "1:1 a key cannot be a multi-line string"), ("'''a''' = 1", "1:1 a key cannot be a multi-line string"),
        ("a = \"\u{0}\"", "1:6 unexpected control character U+0000"), ("a = '\u{7F}'", "1:6 unexpected control character U+007F"),
        ("# \u{1}", "1:3 unexpected control character U+0001"), ("a = 1 # \rb", "1:9 unexpected control character U+000D"),
        ("a = '''x\ry'''", "1:9 unexpected control character U+000D"),
        ("a = 1\rb = 2", "1:6 unexpected control character U+000D"),
        ("a = \u{1}", "1:5 unexpected control character U+0001"), ("a = inf", "1:5 'inf' is not supported: no setting is infinite"),
        ("a = -nan", "1:5 '-nan' is not supported: no setting is infinite"),
        ("a = 1979-05-27T07:32:00Z", "1:5 dates and times are not supported: no setting is one"),
        ("a = 1979-05-27 07:32", "1:5 dates and times are not supported: no setting is one"),
        ("a = 07:32:00.5", "1:5 dates and times are not supported: no setting is one"),
        ("a = [\n  1,\n  flase]", "3:3 'flase' is not a value: strings need quotes, numbers stay within 64 bits"),
    ])
    func `is refused, and the place is named`(text: String, error: String) {
        #expect(read(text) == error)
    }

    @Test(arguments: [
        (String(repeating: "[", count: 1), String(repeating: "]", count: 1)), ("{a=", "}"), ("[{a=", "}]"),
    ])
    func `nests 32 deep and no deeper`(open: String, close: String) {
        // The key itself is one level.
        let levels = open.count { $0 == "[" || $0 == "{" } + open.count { $0 == "a" }
        func nested(_ count: Int) -> String {
            read("a = " + String(repeating: open, count: count) + "1" + String(repeating: close, count: count))
        }
        let deepest = (TOMLReader.depthLimit - 1) / levels
        #expect(nested(deepest).hasPrefix("{"))
        #expect(nested(deepest + 1).hasSuffix("nested deeper than 32 tables and arrays"))
        #expect(nested(100_000).hasSuffix("nested deeper than 32 tables and arrays"))
    }

    @Test func `has keys of at most 32 parts`() {
        let longest = Array(repeating: "k", count: 32).joined(separator: ".")
        for text in ["\(longest) = 1", "[\(longest)]", "[[\(longest)]]", "[k]\n\(longest.dropFirst(2)) = 1"] {
            #expect(read(text).hasPrefix("{"))
        }
        for text in [
            "\(longest).k = 1", "[\(longest).k]", "[[\(longest).k]]", "[k]\n\(longest) = 1", "a = {\(longest) = 1}", "\(longest) = [1]",
        ] {
            #expect(read(text).hasSuffix("nested deeper than 32 tables and arrays"))
        }
        #expect(read(String(repeating: "k.", count: 500_000)).hasSuffix("nested deeper than 32 tables and arrays"))
    }

    /// Each about as long as a configuration may be.
    private static let long: [String: String] = [
        "headers": String(repeating: "[[a]]\n", count: 170_000),
        "deep headers": String(repeating: "[[a.b.c.d.e.f.g.h]]\n", count: 50_000),
        "array": "a = [" + String(repeating: "0,", count: 500_000) + "]",
        "string": "a = '" + String(repeating: "x", count: 1_000_000) + "'",
        "number": "a = 0." + String(repeating: "1", count: 1_000_000),
        "keys": (0..<90_000).map { "k\($0)=1\n" }.joined(),
    ]

    @Test(arguments: Self.long.keys.sorted())
    func `takes time in proportion to its length`(kind: String) throws {
        let text = try #require(Self.long[kind])
        let duration = ContinuousClock().measure { #expect(read(text).first == "{") }
        // Quadratic work would be minutes; a debug build on a busy machine is slow, too.
        #expect(duration < .seconds(120))
    }

    /// Whatever is done to a good file, the answer is a tree or an error with a place in the text; never a trap.
    @Test func `survives random changes`() {
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SplitMix64(seed: seed)
        let pieces = [
            "[", "]", "[[", "]]", "{", "}", "=", ".", ",", "\"", "\"\"\"", "'", "'''", "\\", "\\u", "\\U0010FFFF", "#", "\n", "\r", "\r\n",
            "_", "-", "0x", "e9",
            "1979-05-27", "\u{0}", "\u{7F}", "é", "😀", "true", "nan", "a", " ", "a.b = 1\n", "[a]\n", "[[a]]\n",
        ]
        let source = Array(
            (`A configuration file`.toml + "\na.b = {c = [1, 0x2_3, -4.5e6, {d = '''\nx'''}], 'e' = \"\"\"\\\n\\u00e9\"\"\"}\n")
                .unicodeScalars)
        var refusals = 0
        for _ in 0..<3000 {
            var text = source
            for _ in 0...Int.random(in: 0..<4, using: &random) {
                let start = Int.random(in: 0...text.count, using: &random)
                let end = min(text.count, start + Int.random(in: 0..<6, using: &random))
                text.replaceSubrange(start..<end, with: pieces[Int.random(in: 0..<pieces.count, using: &random)].unicodeScalars)
            }
            if Int.random(in: 0..<4, using: &random) == 0 { text.removeLast(Int.random(in: 0...text.count, using: &random)) }
            let string = String(String.UnicodeScalarView(text))
            do {
                _ = TOMLValue.table(try TOMLReader.read(string)).json
            } catch {
                refusals += 1
                let lines = string.unicodeScalars.split(separator: "\n", omittingEmptySubsequences: false)
                let isInside = 1...lines.count ~= error.line && 1...lines[error.line - 1].count + 1 ~= error.column
                #expect(isInside, "SEED=\(seed): \(error) is not a place in \(string.debugDescription)")
            }
            // The whole way, to the model.
            _ = try? Configuration(contents: Array(string.utf8), path: "n.toml")
        }
        #expect(100..<3000 ~= refusals, "SEED=\(seed)")
    }
}
