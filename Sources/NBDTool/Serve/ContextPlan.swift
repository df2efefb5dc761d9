import Block
import NBDProtocol

/// The metadata contexts that an export is to have: `-A`, `-B NAME`, `--track NAME[:GRANULARITY]` and the keys of the same names.
struct ContextPlan: Equatable, Sendable {
    /// A bitmap in memory that records from now on, and is lost at exit.
    struct Track: Equatable, Sendable {
        var name: String
        /// In bytes.
        var granularity = DirtyBitmap.defaultGranularity
    }

    /// `qemu:allocation-depth`.
    var showsAllocationDepth = false
    /// Bitmaps that the image has, each as `qemu:dirty-bitmap:NAME`.
    var bitmaps: [String] = []
    /// Bitmaps that the image does not have, shown in the same way.
    var tracks: [Track] = []

    init() {}

    /// - Throws: `.usage` for a track that makes no sense.
    init(showsAllocationDepth: Bool, bitmaps: [String], tracks: [String]) throws(ToolError) {
        self.showsAllocationDepth = showsAllocationDepth
        self.bitmaps = bitmaps
        for text in tracks { self.tracks.append(try Self.track(text)) }
    }

    /// `NAME` or `NAME:GRANULARITY`; a name with a colon in it needs the second form.
    private static func track(_ text: String) throws(ToolError) -> Track {
        guard let colon = text.lastIndex(of: ":") else { return Track(name: text) }
        let size = text[text.index(after: colon)...]
        guard let granularity = ByteSize.parse(size) else {
            throw .usage("track '\(text.sanitized())': invalid granularity '\(String(size).sanitized())'")
        }
        return Track(name: String(text[..<colon]), granularity: granularity)
    }

    /// - Throws: `.usage` for names that are empty, too long or given twice, impossible granularities, and tracks of what cannot change.
    func check(isReadOnly: Bool, export: String) throws(ToolError) {
        var names: Set<String> = []
        for name in bitmaps + tracks.map(\.name) {
            guard !name.isEmpty, name.utf8.count <= 1023, !name.utf8.contains(0) else {
                throw .usage("export '\(export.sanitized())': the name of a bitmap has 1 to 1023 bytes, not '\(name.sanitized())'")
            }
            guard names.insert(name).inserted else {
                throw .usage("export '\(export.sanitized())': bitmap '\(name.sanitized())' is given twice")
            }
        }
        for track in tracks {
            guard DirtyBitmap.granularityRange.contains(track.granularity), track.granularity.nonzeroBitCount == 1 else {
                throw .usage(
                    "export '\(export.sanitized())': a granularity is a power of two from 512 to 2G, not \(track.granularity) bytes")
            }
        }
        if isReadOnly, let track = tracks.first {
            throw .usage("export '\(export.sanitized())': nothing can be tracked in '\(track.name.sanitized())': the export is read-only")
        }
    }
}
