"""Every command and flag through libnbd's Python binding, as an honest client sends them."""

import pytest

from images import KIB, MIB, allocated, noise, random_file, sha256, sparse
from peers import need_libnbd

nbd = pytest.importorskip("nbd") if not __import__("os").environ.get("CI") == "true" else need_libnbd()


@pytest.fixture
def handle(serve, disk, connect):
    return connect(serve(disk).uri)


def extents(handle, length, offset=0, flags=0):
    found = {}

    def collect(context, start, entries, error):
        assert context not in found, "a second chunk for one context"
        found[context] = (start, list(zip(entries[::2], entries[1::2])))

    handle.block_status(length, offset, collect, flags)
    return found["base:allocation"][1]


def test_what_was_written_is_read(handle):
    data = noise(70_000)
    handle.pwrite(data, 12_345)
    assert handle.pread(70_000, 12_345) == data
    assert handle.pread(2, 12_344) == b"\0" + data[:1]


def test_what_was_written_is_in_the_file(handle, disk):
    handle.pwrite(b"hello", 1000)
    assert disk.read_bytes()[999:1006] == b"\0hello\0"


@pytest.mark.parametrize("length", [1, 511, 4096, 65_536, MIB, 32 * MIB])
def test_every_length_up_to_the_maximum(handle, length):
    # S-LIM-01, P-SIZE-12
    data = noise(length)
    handle.pwrite(data, 1)
    assert handle.pread(length, 1) == data


@pytest.mark.parametrize("flags", ["READ", "WRITE", "ZERO", "TRIM", "CACHE", "FLUSH"])
def test_fua_is_accepted_on_every_command(serve, disk, connect, flags):
    # P-REQ-04, S-CMD-01, S-CMD-18, S-CMD-27
    handle = connect(serve(disk).uri, strict=False)
    fua = nbd.CMD_FLAG_FUA
    {
        "READ": lambda: handle.pread(512, 0, fua), "WRITE": lambda: handle.pwrite(b"x" * 512, 0, fua),
        "ZERO": lambda: handle.zero(512, 0, fua), "TRIM": lambda: handle.trim(512, 0, fua),
        "CACHE": lambda: handle.cache(512, 0, fua), "FLUSH": lambda: handle.flush(fua),
    }[flags]()


def test_fua_on_block_status(serve, disk, connect):
    # P-REQ-04
    handle = connect(serve(disk).uri, strict=False)
    assert extents(handle, MIB, 0, nbd.CMD_FLAG_FUA)


class TestReads:
    def chunks(self, handle, length, offset, flags=0):
        found = []

        def collect(data, start, status, error):
            found.append((start, len(data), status))

        data = handle.pread_structured(length, offset, collect, flags)
        return bytes(data), sorted(found)

    @pytest.fixture
    def handle(self, serve, directory, connect):
        image = sparse(directory / "image", 4 * MIB, [(MIB, noise(MIB)), (3 * MIB, noise(MIB, 2))])
        self.image = image.read_bytes()
        return connect(serve(image, read_only=True).uri)

    def test_holes_are_sent_as_holes(self, handle):
        # S-CMD-06, S-REP-06, P-CMD-READ-2
        data, chunks = self.chunks(handle, 4 * MIB, 0)
        assert data == self.image
        assert sum(length for _, length, _ in chunks) == 4 * MIB
        assert nbd.READ_HOLE in {status for _, _, status in chunks}

    def test_df_gives_one_chunk(self, handle):
        # S-CMD-04, P-CMD-READ-3
        data, chunks = self.chunks(handle, 3 * MIB, 512 * KIB, nbd.CMD_FLAG_DF)
        assert chunks == [(512 * KIB, 3 * MIB, nbd.READ_DATA)]
        assert data == self.image[512 * KIB:][:3 * MIB]

    @pytest.mark.parametrize("offset", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB - 1, 3 * MIB + 511])
    def test_any_cut_gives_the_same_bytes(self, handle, offset):
        for length in (1, 2, 513, 300_000):
            data, _ = self.chunks(handle, length, offset)
            assert data == self.image[offset:offset + length]


class TestZeroes:
    @pytest.fixture
    def file(self, directory):
        return random_file(directory / "full", 8 * MIB)

    @pytest.mark.parametrize("flags", [0, 1, 2, 3])  # FUA = 1, NO_HOLE = 2
    def test_the_range_reads_as_zeroes_and_nothing_else(self, serve, file, connect, flags):
        # P-CMD-ZERO-1, S-CMD-14
        before = file.read_bytes()
        handle = connect(serve(file).uri)
        handle.zero(MIB + 7, 99, flags)
        expected = before[:99] + bytes(MIB + 7) + before[99 + MIB + 7:]
        assert handle.pread(8 * MIB, 0) == expected
        assert file.read_bytes() == expected

    def test_frees_space(self, serve, file, connect):
        handle = connect(serve(file).uri)
        handle.zero(4 * MIB, 0)
        assert allocated(file) <= 4 * MIB + 64 * KIB
        assert extents(handle, MIB)[0] == (MIB, 3)

    def test_keeps_space_with_no_hole(self, serve, file, connect):
        # P-FLG-06
        handle = connect(serve(file).uri)
        handle.zero(4 * MIB, 0, nbd.CMD_FLAG_NO_HOLE)
        assert allocated(file) >= 8 * MIB

    @pytest.mark.parametrize("no_hole", [0, 2])
    def test_fast_zero_is_fast_or_refused(self, serve, file, connect, no_hole):
        # S-CMD-15, S-CMD-16, P-CMD-ZERO-2: on ENOTSUP the contents are unchanged
        before = sha256(file)
        handle = connect(serve(file).uri)
        try:
            handle.zero(4 * MIB, 0, nbd.CMD_FLAG_FAST_ZERO | no_hole)
        except nbd.Error as error:
            assert error.errno == "ENOTSUP"
            assert sha256(file) == before
        else:
            assert handle.pread(4 * MIB, 0) == bytes(4 * MIB)

    def test_more_than_the_maximum_payload(self, serve, directory, connect):
        # P-SIZE-11: lengths without payload are bounded by 32 bits only
        image = sparse(directory / "big", 6 << 30, [(5 << 30, b"x" * 4096)])
        handle = connect(serve(image).uri)
        handle.zero((4 << 30) - 65_536, 1 << 30)
        assert extents(handle, (4 << 30) - 65_536, 1 << 30)[0][1] == 3


class TestTrims:
    def test_frees_space(self, serve, directory, connect):
        # S-CMD-17
        image = random_file(directory / "full", 8 * MIB)
        handle = connect(serve(image).uri)
        handle.trim(4 * MIB, 0)
        assert allocated(image) <= 4 * MIB + 64 * KIB

    def test_leaves_the_neighbours_alone(self, serve, directory, connect):
        image = random_file(directory / "full", MIB)
        before = image.read_bytes()
        handle = connect(serve(image).uri)
        handle.trim(100_001, 5_003)
        after = handle.pread(MIB, 0)
        assert after[:5_003] == before[:5_003] and after[105_004:] == before[105_004:]


class TestStatus:
    def test_req_one_gives_one_extent(self, serve, directory, connect):
        # S-CMD-26, P-CMD-BST-3
        image = sparse(directory / "image", 4 * MIB, [(MIB, noise(MIB))])
        handle = connect(serve(image).uri)
        assert extents(handle, 4 * MIB, 0, nbd.CMD_FLAG_REQ_ONE) == [(MIB, 3)]
        assert extents(handle, 512, 100, nbd.CMD_FLAG_REQ_ONE) == [(512, 3)]

    def test_extents_cover_the_range_and_no_more(self, serve, directory, connect):
        # S-BST-05, S-BST-06, P-CMD-BST-2, P-CMD-BST-4
        image = sparse(directory / "image", 4 * MIB, [(MIB, noise(MIB)), (3 * MIB, noise(MIB))])
        handle = connect(serve(image).uri)
        for offset, length in [(0, 4 * MIB), (1, 4 * MIB - 1), (MIB - 1, 2), (3 * MIB + 5, 1)]:
            found = extents(handle, length, offset)
            assert all(run > 0 for run, _ in found)
            assert 0 < sum(run for run, _ in found) <= length

    def test_neighbours_differ(self, serve, directory, connect):
        # S-BST-03, P-CMD-BST-5
        image = sparse(directory / "image", 4 * MIB, [(at, noise(64 * KIB)) for at in range(0, MIB, 64 * KIB)])
        found = extents(connect(serve(image).uri), 4 * MIB)
        assert all(a[1] != b[1] for a, b in zip(found, found[1:]))

    def test_writes_appear_at_once(self, handle):
        assert extents(handle, MIB)[0] == (MIB, 3)
        handle.pwrite(noise(64 * KIB), 0)
        handle.flush()
        assert extents(handle, MIB)[0] == (64 * KIB, 0)


class TestSeveralConnections:
    def test_a_write_on_one_is_read_on_the_other(self, serve, disk, connect):
        # P-MC-01, P-MC-04
        uri = serve(disk).uri
        one, two = connect(uri), connect(uri)
        for n in range(50):
            data = noise(8192, n)
            one.pwrite(data, n * 1000)
            assert two.pread(8192, n * 1000) == data

    def test_sixteen_clients_at_once(self, serve, disk, connect):
        uri = serve(disk).uri
        handles = [connect(uri) for _ in range(16)]
        for n, handle in enumerate(handles):
            handle.pwrite(bytes([n]) * 4096, n * 4096)
        assert handles[0].pread(16 * 4096, 0) == b"".join(bytes([n]) * 4096 for n in range(16))


class TestWithoutStructuredReplies:
    def test_everything_works(self, serve, disk, connect):
        # P-REP-01, S-CMD-02
        handle = connect(serve(disk).uri, structured=False)
        assert not handle.get_structured_replies_negotiated() and not handle.can_df()
        handle.pwrite(b"abc" * 1000, 17)
        assert handle.pread(3000, 17) == b"abc" * 1000
        handle.zero(100, 17), handle.trim(4096, 4096), handle.cache(4096, 0), handle.flush()
        assert handle.pread(101, 17) == bytes(100) + b"b"


class TestOptions:
    @pytest.fixture
    def handle(self, serve, disk):
        handle = nbd.NBD()
        handle.set_opt_mode(True)
        handle.connect_uri(serve(disk, name="a", description="words").uri)
        yield handle
        if handle.aio_is_negotiating():
            handle.opt_abort()

    def test_list(self, handle):
        found = []
        handle.opt_list(lambda name, description: found.append((name, description)))
        assert found == [("a", "words")]

    def test_info_may_be_repeated(self, handle):
        # S-INFO-22, P-INFO-12
        for _ in range(3):
            handle.opt_info()
            assert handle.get_size() == 64 * MIB

    def test_info_of_another_name_fails_and_negotiation_goes_on(self, handle):
        # S-INFO-07, P-INFO-10
        handle.set_export_name("b")
        with pytest.raises(nbd.Error) as caught:
            handle.opt_info()
        assert caught.value.errno == "ENOENT"
        handle.set_export_name("a")
        handle.opt_go()
        assert handle.pread(4, 0) == bytes(4)

    @pytest.mark.parametrize("query, expected", [
        (None, True), ("base:", True), ("base:allocation", True), ("base:other", False), ("x-unknown:", False),
        ("Base:allocation", False), ("", False),
    ])
    def test_list_meta_contexts(self, handle, query, expected):
        # S-META-10, S-META-12, S-META-13, S-META-18, P-META-05, P-META-07
        found = []
        if query is not None:
            handle.add_meta_context(query)
        handle.opt_list_meta_context(found.append)
        assert ("base:allocation" in found) == expected

    def test_abort(self, handle):
        # S-ABRT-01, P-OPT-04
        handle.opt_abort()
        assert handle.aio_is_closed()


def test_disconnecting_ends_the_connection(serve, disk, connect):
    # P-CMD-DISC-1: shutdown waits for the server to close
    handle = connect(serve(disk).uri)
    handle.shutdown()
    assert handle.aio_is_closed()
