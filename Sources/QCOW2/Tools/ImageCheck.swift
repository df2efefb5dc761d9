extension ImageFile {
    /// Checks the image, and repairs what `repair` allows.
    ///
    /// With `.leaks` refcounts only become smaller. With `.all` they become what the references demand, lost or wrong flags of entries are
    /// corrected, refcount structures that cannot be trusted are written anew, and an image without corruptions left loses its dirty and
    /// corrupt bits. What points out of the file, or inside of a cluster, is told and left: nobody knows what it should be. An image where
    /// the header or a table shares a cluster with another table is not repaired: what is right for one use damages the other.
    ///
    /// Takes at most some 600 MiB of memory, whatever the image says (`ReferenceCounts`, `ImageChecker`).
    ///
    /// - Returns: what was found and fixed; after a repair check again, since one correction can uncover another.
    /// - Throws: when the image cannot be checked at all.
    public func check(repair mode: RepairMode? = nil) async throws(ImageError) -> CheckReport {
        try decoding { () throws(FormatError) in try header.requireReadable() }
        let checker = ImageChecker(self)
        var repair = mode
        do throws(ImageError) {
            try await checker.count()
            if checker.hasOverlaps, repair != nil {
                repair = nil
                checker.report.error("nothing is repaired: what is right for one use of a cluster damages the other")
            }
            try await checker.compare(repair: repair)
            if checker.mustRebuild, repair == .all { try await rebuildRefcounts(of: checker) }
            try await checker.checkCopiedFlags(repair: repair)
        } catch .format(let error) {
            checker.report.error(error.detail)
        } catch .refused(let reason) {
            checker.report.error(reason)
        }
        let isSound = checker.report.errorCount == 0 && checker.report.corruptionCount == 0
        if repair == .all, isSound, !header.incompatibleFeatures.isDisjoint(with: [.dirty, .corrupt]) {
            try await flush()
            header.incompatibleFeatures.subtract([.dirty, .corrupt])
            try await writeHeader()
        } else if repair != nil {
            try await flush()
        }
        return checker.report
    }

    /// Counts again, without the damaged structures, and writes new ones. What the comparison found in refcounts is fixed by that.
    private func rebuildRefcounts(of checker: ImageChecker) async throws(ImageError) {
        let counting = ImageChecker(self)
        try await counting.count(includingRefcounts: false)
        try await counting.rebuild()
        checker.report.note("Repairing the refcounts: all are written anew")
        checker.counts = counting.counts
        checker.blocks = counting.blocks
        let lasting = counting.report.corruptionCount
        checker.report.fixedCorruptionCount += checker.report.corruptionCount - min(lasting, checker.report.corruptionCount)
        checker.report.corruptionCount = lasting
        checker.report.fixedLeakCount += checker.report.leakCount
        checker.report.leakCount = 0
        checker.report.imageEndOffset = ((counting.counts.highest ?? 0) + 1) << UInt64(geometry.clusterBits)
    }
}
