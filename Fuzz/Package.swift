// swift-tools-version: 6.2
import PackageDescription

// Built by `Fuzz/run`, which adds -sanitize=fuzzer for everything, so that what is fuzzed is instrumented too.
let package = Package(
    name: "Fuzz",
    platforms: [.macOS(.v15)],
    dependencies: [.package(name: "swift-nbd", path: "..")],
    targets: [
        .target(name: "CFuzz"),
        .executableTarget(
            name: "fuzz",
            dependencies: ["CFuzz", .product(name: "NBDProtocol", package: "swift-nbd")],
            swiftSettings: [
                .swiftLanguageMode(.v6), .strictMemorySafety(), .enableExperimentalFeature("Lifetimes"),
                .unsafeFlags(["-parse-as-library"]),
            ])
    ]
)
