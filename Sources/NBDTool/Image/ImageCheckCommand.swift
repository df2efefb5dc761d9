import ArgumentParser
import BlockDrivers
import NBDProtocol
import QCOW2

/// `nbd image check`
struct ImageCheckCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "check",
        abstract: "Look for damage in an image, and repair it if asked.",
        discussion: """
            Exit codes: 0 nothing is wrong, or all is repaired; 1 the check itself failed; 2 data is or may become damaged; 3 space is lost, \
            data is safe; 63 the format has nothing to check.
            """)

    @Option(name: [.customShort("f"), .customLong("format")], help: "raw or qcow2; else the first bytes of the file decide.")
    var format: ImageFormat?

    @Option(
        name: [.customShort("r"), .customLong("repair")],
        help: ArgumentHelp("leaks: free lost clusters. all: everything that can be repaired.", valueName: "leaks|all"),
        transform: repairMode)
    var repair: RepairMode?

    @Flag(name: [.customShort("U"), .customLong("force-share")], help: "Look even if another program writes the image.")
    var isShared = false

    @Flag(name: .shortAndLong, help: "Print nothing but errors.")
    var quiet = false

    @OptionGroup var output: ImageOutput

    @Argument(help: "The image.")
    var file: String

    func run() async throws {
        let opened = try await OpenedImage.open(file, format, isReadOnly: repair == nil, isLocked: !isShared || repair != nil)
        guard let image = opened.image else {
            if !quiet { HostProcess.write(Array("nbd: '\(file)': raw images have nothing to check\n".utf8), to: 2) }
            throw ExitCode(63)
        }
        var report = try await check(image, repair)
        if report.fixedCorruptionCount > 0 || report.fixedLeakCount > 0 {
            printFindings(report)
            if !output.isJSON, !quiet {
                print(
                    """
                    The following inconsistencies were found and repaired:

                        \(report.fixedLeakCount) leaked clusters
                        \(report.fixedCorruptionCount) corruptions

                    Double checking the fixed image now...
                    """)
            }
            // One correction can uncover another finding.
            let (leaks, corruptions) = (report.fixedLeakCount, report.fixedCorruptionCount)
            report = try await check(image, nil)
            report.setFixed(leaks: leaks, corruptions: corruptions)
        }
        printFindings(report)
        await opened.file.close()
        if !quiet || output.isJSON { print(output.isJSON ? json(report).text : text(report)) }
        if let code = exitCode(report) { throw ExitCode(code) }
    }

    private func check(_ image: ImageFile, _ repair: RepairMode?) async throws(ToolError) -> CheckReport {
        try await withImageErrors(file) { () throws(ImageError) in try await image.check(repair: repair) }
    }

    private func exitCode(_ report: CheckReport) -> Int32? {
        if report.errorCount > 0 { return 1 }
        if report.corruptionCount > 0 { return 2 }
        return report.leakCount > 0 ? 3 : nil
    }

    /// On standard error, as the result proper may be JSON.
    private func printFindings(_ report: CheckReport) {
        guard !quiet, !report.findings.isEmpty else { return }
        let text = report.findings.map { $0.sanitized(limit: 400) }.joined(separator: "\n")
        HostProcess.write(Array((text + "\n").utf8), to: output.isJSON ? 2 : 1)
    }

    private func json(_ report: CheckReport) -> JSON {
        var fields: [(key: String, value: JSON)] = [
            ("image-end-offset", .integer(report.imageEndOffset)), ("check-errors", .integer(report.errorCount)),
        ]
        let counts: [(String, UInt64)] = [
            ("corruptions", report.corruptionCount), ("leaks", report.leakCount), ("corruptions-fixed", report.fixedCorruptionCount),
            ("leaks-fixed", report.fixedLeakCount), ("total-clusters", report.clusterCount),
            ("allocated-clusters", report.allocatedClusterCount),
            ("fragmented-clusters", report.fragmentedClusterCount), ("compressed-clusters", report.compressedClusterCount),
        ]
        for (key, count) in counts where count > 0 { fields.append((key, .integer(count))) }
        return .object(fields + [("filename", .string(file)), ("format", .string("qcow2"))])
    }

    private func text(_ report: CheckReport) -> String {
        var lines: [String] = []
        if report.errorCount == 0, report.corruptionCount == 0, report.leakCount == 0 {
            lines.append("No errors were found on the image.")
        }
        if report.corruptionCount > 0 {
            lines.append("\n\(report.corruptionCount) errors were found on the image.\nData is damaged, or the next writes may damage it.")
        }
        if report.leakCount > 0 {
            lines.append("\n\(report.leakCount) leaked clusters were found on the image.\nThey take space; data is safe.")
        }
        if report.errorCount > 0 { lines.append("\n\(report.errorCount) parts of the image could not be checked.") }
        if report.clusterCount > 0 {
            func percent(_ count: UInt64, _ total: UInt64) -> String {
                let hundredths = total == 0 ? 0 : (Double(count) * 10_000 / Double(total)).rounded()
                let value = UInt64(hundredths)
                return "\(value / 100).\(value % 100 < 10 ? "0" : "")\(value % 100)%"
            }
            let allocated = report.allocatedClusterCount
            lines.append(
                "\(allocated)/\(report.clusterCount) = \(percent(allocated, report.clusterCount)) allocated, "
                    + "\(percent(report.fragmentedClusterCount, allocated)) fragmented, "
                    + "\(percent(report.compressedClusterCount, allocated)) compressed clusters")
        }
        lines.append("Image end offset: \(report.imageEndOffset)")
        return lines.joined(separator: "\n")
    }
}

/// What `-r` takes.
private func repairMode(_ text: String) throws -> RepairMode {
    guard let mode = RepairMode(rawValue: text) else { throw ValidationError("-r is leaks or all") }
    return mode
}
