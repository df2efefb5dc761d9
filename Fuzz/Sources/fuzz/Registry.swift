import CFuzz
import Glibc

/// What can be fuzzed, by name. A target gets arbitrary bytes and traps when a promise is broken.
let targets: [String: @Sendable ([UInt8]) -> Void] = [
    "canary": fuzzCanary,
    "client": fuzzClient,
    "handshake": fuzzHandshake,
    "image": fuzzImage,
    "tls": fuzzTLS,
    "transmission": fuzzTransmission,
    "uri": fuzzURI,
]

/// Named by FUZZ_TARGET, since libFuzzer owns the command line.
let target: @Sendable ([UInt8]) -> Void = {
    // SAFETY: nothing changes the environment; the string is copied.
    guard let name = unsafe getenv("FUZZ_TARGET").map({ unsafe String(cString: $0) }), let target = targets[name] else {
        print("FUZZ_TARGET must be one of: \(targets.keys.sorted().joined(separator: " "))")
        exit(2)
    }
    return target
}()

@main struct Fuzz {
    static func main() {
        var count = CommandLine.argc
        // SAFETY: the arguments are those that the process was started with; libFuzzer owns `size` bytes at `start` for the length of the
        // callback, and they are copied.
        var arguments: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>? = unsafe CommandLine.unsafeArgv
        let result = unsafe LLVMFuzzerRunDriver(&count, &arguments) { start, size in
            target(unsafe [UInt8](UnsafeBufferPointer(start: start, count: size)))
            return 0
        }
        exit(result)
    }
}

/// Must die: what shows that the harness sees crashes.
@Sendable func fuzzCanary(_ input: [UInt8]) {
    precondition(!input.starts(with: "NBD!".utf8), "the canary has died, as it must")
}
