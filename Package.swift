// swift-tools-version: 6.2
import PackageDescription

/// CI sets SWIFT_NBD_STRICT=1: warnings become errors there, never in somebody else's build of this package.
let isStrict = Context.environment["SWIFT_NBD_STRICT"] == "1"

/// Tests may take bytes out of spans without ceremony: strict memory safety is a promise of what users run.
let testSettings: [SwiftSetting] =
    [
        .swiftLanguageMode(.v6),
        .enableExperimentalFeature("Lifetimes"),
        .enableUpcomingFeature("ExistentialAny"),
        .enableUpcomingFeature("InternalImportsByDefault"),
        .enableUpcomingFeature("MemberImportVisibility"),
        .enableUpcomingFeature("NonisolatedNonsendingByDefault"),
    ] + (isStrict ? [.treatAllWarnings(as: .error)] : [])

let settings = testSettings + [.strictMemorySafety()]

/// A program that carries Swift's runtime starts in a third of the time, and on machines without Swift.
let staticRuntime: [LinkerSetting] = [.unsafeFlags(["-static-stdlib", "-use-ld=lld", "-l_FoundationCollections", "-l_FoundationCShims"], .when(platforms: [.linux], configuration: .release))]

let nioCore: Target.Dependency = .product(name: "NIOCore", package: "swift-nio")
let nioPosix: Target.Dependency = .product(name: "NIOPosix", package: "swift-nio")
let nioEmbedded: Target.Dependency = .product(name: "NIOEmbedded", package: "swift-nio")
let nioSSL: Target.Dependency = .product(name: "NIOSSL", package: "swift-nio-ssl")
let nioTLS: Target.Dependency = .product(name: "NIOTLS", package: "swift-nio")
let log: Target.Dependency = .product(name: "Logging", package: "swift-log")
let lifecycle: Target.Dependency = .product(name: "ServiceLifecycle", package: "swift-service-lifecycle")
let arguments: Target.Dependency = .product(name: "ArgumentParser", package: "swift-argument-parser")
let histogram: Target.Dependency = .product(name: "Histogram", package: "hdrhistogram-swift")
let systemPackage: Target.Dependency = .product(name: "SystemPackage", package: "swift-system")

/// One room of the house. What it may import is exactly what is listed here (see ARCHITECTURE.md).
func room(_ name: String, _ dependencies: [Target.Dependency] = []) -> Target {
    .target(name: name, dependencies: dependencies, exclude: ["README.md"], swiftSettings: settings)
}

func tests(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .testTarget(name: name, dependencies: dependencies, swiftSettings: testSettings)
}

let package = Package(
    name: "swift-nbd",
    platforms: [.macOS(.v15)],
    products: [
        .library(name: "NBDServer", targets: ["NBDServer"]),
        .library(name: "NBDClient", targets: ["NBDClient"]),
        .library(name: "Block", targets: ["Block"]),
        .library(name: "BlockDrivers", targets: ["BlockDrivers"]),
        .library(name: "BlockGraph", targets: ["BlockGraph"]),
        .library(name: "QCOW2", targets: ["QCOW2"]),
        .library(name: "NBDEngine", targets: ["NBDEngine"]),
        .library(name: "NBDProtocol", targets: ["NBDProtocol"]),
        .library(name: "BlockDeviceConformance", targets: ["BlockDeviceConformance"]),
        // For Fuzz alone, which is a package of its own.
        .library(name: "_NBDTool", targets: ["NBDTool"]),
        .executable(name: "nbd", targets: ["nbd"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
        .package(url: "https://github.com/apple/swift-nio-ssl", from: "2.37.6"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
        .package(url: "https://github.com/HdrHistogram/hdrhistogram-swift", from: "0.2.0"),
    ],
    targets: [
        // Ground
        .target(name: "CHostIO"),
        room("HostIO", ["CHostIO", systemPackage]),
        // Cellar
        room("Block", ["HostIO"]),
        room("NBDProtocol"),
        .target(name: "CCompression", linkerSettings: [.linkedLibrary("z"), .linkedLibrary("zstd")]),
        room("QCOW2", ["Block", "CCompression"]),
        room("NBDTLS", [nioCore, nioSSL, systemPackage]),
        // Engine
        room("NBDEngine", ["NBDProtocol", "Block", nioCore]),
        // Workshops
        .target(name: "CSockets"),
        room("NBDServer", ["NBDEngine", "NBDProtocol", "NBDTLS", "Block", "HostIO", "CSockets", nioCore, nioPosix, nioTLS, log, lifecycle]),
        room("NBDClient", ["NBDProtocol", "NBDTLS", nioCore, nioPosix, nioTLS, systemPackage]),
        room("BlockDrivers", ["Block", "HostIO"]),
        room("BlockGraph", ["Block"]),
        room("BlockDeviceConformance", ["Block"]),
        // Street
        room(
            "NBDTool",
            ["NBDServer", "NBDClient", "NBDEngine", "NBDProtocol", "NBDTLS", "BlockDrivers", "BlockGraph", "QCOW2", "Block", "HostIO", log, lifecycle, arguments, histogram]),
        .executableTarget(name: "nbd", dependencies: ["NBDTool"], swiftSettings: settings, linkerSettings: staticRuntime),
        // Examples, compiled and run by the tests
        .executableTarget(
            name: "ServeActor", dependencies: ["NBDServer", "Block", log, lifecycle, .product(name: "UnixSignals", package: "swift-service-lifecycle")], path: "Examples/ServeActor", swiftSettings: settings),
        // Tests
        .target(name: "TestPeers", dependencies: ["NBDProtocol"], path: "Tests/TestPeers", swiftSettings: settings),
        tests("BlockTests", ["Block", "BlockDeviceConformance"]),
        tests("QCOW2Tests", ["QCOW2", "Block", "BlockDrivers", "BlockDeviceConformance"]),
        tests("HostIOTests", ["HostIO", systemPackage]),
        tests("BlockDriversTests", ["BlockDrivers", "Block", "HostIO", "BlockDeviceConformance"]),
        tests("BlockGraphTests", ["BlockGraph", "BlockDrivers", "Block", "BlockDeviceConformance"]),
        tests("NBDProtocolTests", ["NBDProtocol"]),
        tests("NBDTLSTests", ["NBDTLS", nioCore, nioEmbedded, nioSSL]),
        tests("NBDEngineTests", ["NBDEngine", "NBDProtocol", "Block", "HostIO", nioCore]),
        tests("NBDClientTests", ["NBDClient", "NBDProtocol", "TestPeers", nioCore, nioPosix]),
        tests("NBDServerTests", ["NBDServer", "NBDClient", "NBDEngine", "NBDProtocol", "NBDTLS", "Block", nioCore, nioPosix, log, lifecycle]),
        tests("NBDToolTests", ["NBDTool", "BlockGraph", "QCOW2", "NBDServer", "NBDClient", "NBDProtocol", "Block", "BlockDrivers", "TestPeers", log, arguments]),
    ]
)
