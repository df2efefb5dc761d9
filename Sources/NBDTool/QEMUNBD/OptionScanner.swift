import NBDProtocol

/// Reads a command line as GNU `getopt_long` does: joined short options (`-tre4`), `--name=value`, unambiguous abbreviations (`--pers`),
/// options after operands, `--`. ArgumentParser reads other things differently; scripts written for qemu-nbd rely on these.
struct OptionScanner {
    struct Option: Equatable, Sendable {
        /// Without dashes.
        var name: String
        var letter: Character?
        var takesValue: Bool

        init(_ name: String, _ letter: Character? = nil, takesValue: Bool = false) {
            self.name = name
            self.letter = letter
            self.takesValue = takesValue
        }
    }

    enum Item: Equatable, Sendable {
        /// By its long name.
        case option(String, value: String?)
        case operand(String)
    }

    let options: [Option]

    /// - Parameter arguments: Without the name of the program.
    /// - Returns: Options and operands in their order.
    /// - Throws: `.usage` at the first thing that is no option.
    func scan(_ arguments: [String]) throws(ToolError) -> [Item] {
        var items: [Item] = []
        var rest = arguments[...]
        while let argument = rest.popFirst() {
            if argument == "--" {
                items += rest.map { .operand($0) }
                break
            } else if argument.hasPrefix("--") {
                items.append(try long(argument.dropFirst(2), &rest))
            } else if argument.hasPrefix("-"), argument != "-" {
                items += try short(argument.dropFirst(), &rest)
            } else {
                items.append(.operand(argument))
            }
        }
        return items
    }

    private func long(_ text: Substring, _ rest: inout ArraySlice<String>) throws(ToolError) -> Item {
        let name = String(text.prefix { $0 != "=" })
        let joined = name.count == text.count ? nil : String(text.dropFirst(name.count + 1))
        let option = try find(name)
        guard option.takesValue else {
            if joined != nil { throw .usage("option '--\(option.name)' doesn't allow an argument") }
            return .option(option.name, value: nil)
        }
        guard let value = joined ?? rest.popFirst() else { throw .usage("option '--\(option.name)' requires an argument") }
        return .option(option.name, value: value)
    }

    private func find(_ name: String) throws(ToolError) -> Option {
        if let exact = options.first(where: { $0.name == name }) { return exact }
        let candidates = options.filter { !name.isEmpty && $0.name.hasPrefix(name) }
        guard let first = candidates.first else { throw .usage("unrecognized option '--\(name.sanitized())'") }
        guard candidates.count == 1 else {
            throw .usage("option '--\(name)' is ambiguous: \(candidates.map { "--" + $0.name }.joined(separator: ", "))")
        }
        return first
    }

    /// `-trx name`: flags up to the first letter that takes a value, which is the rest of the word or the next one.
    private func short(_ letters: Substring, _ rest: inout ArraySlice<String>) throws(ToolError) -> [Item] {
        var items: [Item] = []
        var letters = letters
        while let letter = letters.popFirst() {
            guard let option = options.first(where: { $0.letter == letter }) else {
                throw .usage("invalid option -- '\(String(letter).sanitized())'")
            }
            if !option.takesValue {
                items.append(.option(option.name, value: nil))
                continue
            }
            guard let value = letters.isEmpty ? rest.popFirst() : String(letters) else {
                throw .usage("option requires an argument -- '\(letter)'")
            }
            items.append(.option(option.name, value: value))
            break
        }
        return items
    }
}
