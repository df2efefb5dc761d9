// swift-tools-version: 6.2
import PackageDescription

// Built by `Fuzz/run`, which adds -sanitize=fuzzer for everything, so that what is fuzzed is instrumented too.
let package = Package(
    name: "Fuzz",
    platforms: [.macOS(.v15)],
    dependencies: [
        .package(name: "swift-nbd", path: ".."),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
    ],
    targets: [
        .target(name: "CFuzz"),
        .executableTarget(
            name: "fuzz",
            dependencies: [
                "CFuzz", .product(name: "_NBDTool", package: "swift-nbd"), .product(name: "NBDServer", package: "swift-nbd"),
                .product(name: "NBDProtocol", package: "swift-nbd"), .product(name: "NBDEngine", package: "swift-nbd"),
                .product(name: "Block", package: "swift-nbd"), .product(name: "QCOW2", package: "swift-nbd"),
                .product(name: "NIOCore", package: "swift-nio"),
            ],
            swiftSettings: [
                .swiftLanguageMode(.v6), .strictMemorySafety(), .enableExperimentalFeature("Lifetimes"),
                .unsafeFlags(["-parse-as-library"]),
            ]),
    ]
)
