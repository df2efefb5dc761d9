"""What a client sends wrong, and the exact error it gets. The connection goes on after every one of them."""

import pytest

import wire
from images import MIB
from server import CUT_OFF
from wire import EINVAL, ENOSPC, EOVERFLOW, EPERM, Wire

SIZE = 64 * MIB
FAR = (1 << 64) - 512


@pytest.fixture(params=["simple", "structured"])
def client(request, serve, disk):
    with Wire(serve(disk).uri) as link:
        yield link.go(structured=request.param == "structured")
        assert link.call(wire.FLUSH) == 0, "the connection did not survive"


@pytest.fixture(params=["simple", "structured"])
def reader(request, serve, disk):
    with Wire(serve(disk, read_only=True).uri) as link:
        yield link.go(structured=request.param == "structured")
        assert link.call(wire.FLUSH) == 0, "the connection did not survive"


class TestReadOnly:
    # S-BUG-02, S-REQ-11, S-CMD-12, S-ERR-02, P-ERR-04, P-CMD-WRITE-2, P-CMD-TRIM-1, P-CMD-ZERO-4
    def test_write(self, reader):
        assert reader.call(wire.WRITE, 0, 4096, data=bytes(4096)) == EPERM

    def test_trim(self, reader):
        assert reader.call(wire.TRIM, 0, 4096) == EPERM

    def test_zeroes(self, reader):
        assert reader.call(wire.ZEROES, 0, 4096) == EPERM

    def test_read_only_comes_before_the_range(self, reader):
        # S-REQ-11
        assert reader.call(wire.WRITE, SIZE, 512, data=bytes(512)) == EPERM

    def test_flush_succeeds(self, reader):
        # S-CMD-21
        assert reader.call(wire.FLUSH) == 0

    def test_cache_succeeds(self, reader):
        # S-CMD-22
        assert reader.call(wire.CACHE, 0, 4096) == 0


@pytest.mark.parametrize("offset, length", [(SIZE, 1), (SIZE - 1, 2), (SIZE + 4096, 4096), (FAR, 4096), (FAR, 512)])
class TestPastTheEnd:
    # S-REQ-07, S-REQ-12, P-SIZE-10, P-ERR-02, P-ERR-03
    def test_read(self, client, offset, length):
        assert client.call(wire.READ, offset, length) == EINVAL

    def test_write(self, client, offset, length):
        # S-BUG-02, S-ERR-05
        assert client.call(wire.WRITE, offset, length, data=bytes(length)) == ENOSPC

    def test_zeroes(self, client, offset, length):
        assert client.call(wire.ZEROES, offset, length) == ENOSPC

    def test_trim(self, client, offset, length):
        assert client.call(wire.TRIM, offset, length) == EINVAL

    def test_cache(self, client, offset, length):
        assert client.call(wire.CACHE, offset, length) == EINVAL


def test_status_past_the_end(serve, disk):
    # P-CMD-BST-6
    with Wire(serve(disk).uri) as link:
        link.go(structured=True, contexts=["base:allocation"])
        for offset, length in [(SIZE, 1), (SIZE - 1, 2), (FAR, 4096)]:
            assert link.call(wire.STATUS, offset, length) == EINVAL
        assert link.call(wire.STATUS, 0, 512) == 0


class TestLengthZero:
    # S-CMD-03, S-CMD-05, S-CMD-13, S-REQ-13, P-REQ-07
    @pytest.mark.parametrize("offset", [0, 4096, SIZE])
    def test_succeeds(self, client, offset):
        for command in (wire.READ, wire.WRITE, wire.TRIM, wire.ZEROES, wire.CACHE):
            assert client.call(command, offset, 0) == 0, command

    def test_status_is_refused(self, serve, disk):
        # S-CMD-23
        with Wire(serve(disk).uri) as link:
            link.go(structured=True, contexts=["base:allocation"])
            assert link.call(wire.STATUS, 0, 0) == EINVAL


class TestUnknown:
    @pytest.mark.parametrize("command", [8, 9, 100, 0xFFFF])
    def test_command(self, client, command):
        # S-REQ-19, P-REQ-03
        assert client.call(command, 0, 512) == EINVAL

    @pytest.mark.parametrize("flag", [1 << bit for bit in range(5, 16)])
    def test_flag(self, client, flag):
        # S-REQ-15, P-REQ-03, P-EXT-09
        for command in (wire.READ, wire.FLUSH, wire.TRIM, wire.ZEROES, wire.CACHE):
            assert client.call(command, 0, 512, flags=flag) == EINVAL, (command, flag)
        assert client.call(wire.WRITE, 0, 512, flags=flag, data=bytes(512)) == EINVAL

    @pytest.mark.parametrize("command, flag", [
        (wire.READ, wire.NO_HOLE), (wire.READ, wire.REQ_ONE), (wire.READ, wire.FAST_ZERO),
        (wire.TRIM, wire.NO_HOLE), (wire.TRIM, wire.DF), (wire.TRIM, wire.FAST_ZERO),
        (wire.ZEROES, wire.DF), (wire.ZEROES, wire.REQ_ONE), (wire.FLUSH, wire.NO_HOLE), (wire.CACHE, wire.DF),
    ])
    def test_flag_of_another_command(self, client, command, flag):
        # S-REQ-15
        assert client.call(command, 0, 512, flags=flag) == EINVAL

    def test_df_without_structured_replies(self, serve, disk):
        # S-REQ-15, P-FLG-04
        with Wire(serve(disk).uri) as link:
            link.go()
            assert not link.flags & 0x80
            assert link.call(wire.READ, 0, 512, flags=wire.DF) == EINVAL


class TestTooLong:
    @pytest.mark.parametrize("length", [32 * MIB + 1, 33 * MIB, (1 << 32) - 1])
    def test_read(self, client, length):
        # S-REQ-08, S-LIM-01, S-ERR-06, P-CMD-READ-7, P-SIZE-11
        assert client.call(wire.READ, 0, length) in (EINVAL, EOVERFLOW)

    def test_write_is_the_end(self, serve, disk):
        # S-REQ-08, S-BUG-10, P-REQ-06, S-CVE-10: the payload is too long to read away, so a reply at most, then the end.
        # The payload spells valid requests: none of them may be executed.
        server = serve(disk, stderr=CUT_OFF)
        with Wire(server.uri) as link:
            link.go()
            smuggled = Wire.header(wire.ZEROES, 0, 4096, cookie=99)
            with Wire(server.uri) as other:
                other.go()
                assert other.call(wire.WRITE, 0, 4096, data=b"x" * 4096) == 0
            try:
                link.request(wire.WRITE, 0, 64 * MIB, data=smuggled * 1000)
                error, _, _ = link.answer()
                assert error in (EINVAL, EOVERFLOW)
                assert link.is_closed()
            except wire.Closed:
                pass
        assert disk.read_bytes()[:4096] == b"x" * 4096


def test_status_without_a_context(serve, disk):
    # S-CMD-24, P-CMD-BST-6
    with Wire(serve(disk).uri) as link:
        link.go(structured=True)
        assert link.call(wire.STATUS, 0, 512) == EINVAL


def test_status_without_structured_replies(serve, disk):
    with Wire(serve(disk).uri) as link:
        link.go()
        assert link.call(wire.STATUS, 0, 512) == EINVAL


def test_flush_ignores_offset_and_length(client):
    # S-BUG-20, S-CMD-20, P-CMD-FLUSH-2: wnbd sends the last write's range
    assert client.call(wire.FLUSH, SIZE + 512, 4096) == 0
    assert client.call(wire.FLUSH, FAR, 0xFFFFFFFF) == 0


def test_a_refused_write_leaves_the_stream_in_step(client):
    # S-REQ-10, S-REQ-17, P-REQ-06
    for _ in range(20):
        assert client.call(wire.WRITE, SIZE, MIB, data=bytes(MIB)) == ENOSPC


def test_a_structured_error_has_a_text_and_is_short(serve, disk):
    # S-CMD-29, S-REP-08, S-REQ-18, S-LIM-05, P-REP-07
    with Wire(serve(disk).uri) as link:
        link.go(structured=True)
        link.request(wire.READ, SIZE, 512)
        error, _, chunks = link.answer()
        kind, payload = chunks[-1]
        assert error == EINVAL and kind == wire.ERROR
        text = payload[6:].decode()
        assert text and len(payload) <= 900
        assert int.from_bytes(payload[4:6], "big") == len(text.encode())
        # S-REP-12
        assert str(disk) not in text


def test_disc_is_obeyed_whatever_its_fields_say(serve, disk):
    # S-REQ-06, P-CMD-DISC-1
    with Wire(serve(disk).uri) as link:
        link.go()
        link.request(wire.DISC, FAR, 0xFFFFFFFF, flags=0xFFFF)
        assert link.is_closed()


def test_requests_before_disc_are_answered(serve, disk):
    # S-BUG-21, S-CMD-30, P-CMD-DISC-1
    with Wire(serve(disk).uri) as link:
        link.go()
        batch = b"".join(Wire.header(wire.WRITE, n * 4096, 4096, cookie=n) + bytes([n]) * 4096 for n in range(1, 30))
        link.send(batch + Wire.header(wire.DISC))
        assert sorted(link.simple() for _ in range(29)) == [(0, n) for n in range(1, 30)]
        assert link.is_closed()
    assert disk.read_bytes()[4096:8192] == b"\1" * 4096


def test_a_bad_magic_is_the_end_without_a_word(serve, disk):
    # S-REQ-04, S-BUG-10, P-REQ-05
    with Wire(serve(disk, stderr=CUT_OFF).uri) as link:
        link.go()
        link.send(Wire.header(wire.READ, 0, 512, magic=0x12345678))
        assert link.is_closed()


def test_cookies_come_back_unchanged_even_when_they_repeat(client):
    # P-REQ-02, S-REP-01
    for cookie in (0, 1, (1 << 64) - 1, 0x0123456789ABCDEF):
        assert client.call(wire.FLUSH, cookie=cookie) == 0
    batch = Wire.header(wire.FLUSH, cookie=5) * 10
    client.send(batch)
    assert [client.answer()[:2] for _ in range(10)] == [(0, 5)] * 10


class TestForms:
    """Which shape a reply has."""

    def test_structured_mode_answers_reads_by_chunks_and_the_rest_simply_or_by_chunks(self, serve, disk):
        # S-CMD-28, S-REP-04, P-REP-02, P-REP-04, P-REP-06, P-REP-09
        with Wire(serve(disk).uri) as link:
            link.go(structured=True)
            link.request(wire.READ, 0, 0)
            assert link.chunk() == (1, wire.NONE, 1, b"")
            link.request(wire.READ, 4096, 512, flags=wire.DF)
            flags, kind, _, payload = link.chunk()
            # S-REP-03, S-REP-05
            assert (flags, kind, payload) == (1, wire.DATA, (4096).to_bytes(8, "big") + bytes(512))
            assert link.call(wire.WRITE, 0, 1, data=b"x") == 0

    def test_a_failed_read_over_simple_replies_has_no_data(self, serve, disk):
        # P-CMD-READ-1, S-CMD-09
        with Wire(serve(disk).uri) as link:
            link.go()
            link.send(Wire.header(wire.READ, SIZE, 4096, cookie=1) + Wire.header(wire.READ, 0, 4, cookie=2))
            answers = {}
            for _ in range(2):
                error, cookie = link.simple()
                answers[cookie] = (error, b"" if error else link.receive(4))
            assert answers == {1: (EINVAL, b""), 2: (0, bytes(4))}

    def test_status_gives_one_chunk_for_one_context(self, serve, disk):
        # S-CMD-25, S-REP-07, P-CMD-BST-1
        with Wire(serve(disk).uri) as link:
            link.go(structured=True, contexts=["base:allocation"])
            link.request(wire.STATUS, 0, MIB)
            flags, kind, _, payload = link.chunk()
            assert flags == 1 and kind == wire.BLOCK_STATUS
            assert payload == b"".join(n.to_bytes(4, "big") for n in (*link.contexts, MIB, 3))


class TestFastZero:
    def test_is_the_only_way_to_enotsup(self, serve, directory):
        # S-ERR-07, P-CMD-ZERO-3, P-ERR-06
        (directory / "image").write_bytes(b"x" * MIB)
        with Wire(serve(directory / "image").uri) as link:
            link.go()
            assert link.call(wire.ZEROES, 1, 4095) == 0
            assert link.call(wire.ZEROES, 4097, 100, flags=wire.NO_HOLE) == 0
            assert link.call(wire.ZEROES, 8192, 4096, flags=wire.FAST_ZERO) in (0, wire.ENOTSUP)
            assert link.call(wire.TRIM, 1, 100) == 0
