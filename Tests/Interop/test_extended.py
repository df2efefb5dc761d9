"""Extended headers, by hand: the peers of Debian 12 do not speak them yet (libnbd 1.18 and QEMU 8.2 do)."""

import struct

import pytest

import wire
from images import GIB, KIB, MIB, noise, sparse
from server import CUT_OFF
from wire import ACK, EINVAL, ENOSPC, INVALID, Wire

EXTENDED_HEADERS = 11
EXT_HEADER_REQD = wire.ERROR_BIT + 10
REQUEST, REPLY = 0x21E41C71, 0x6E8A278C
PAYLOAD_LEN = 32
STATUS_EXT = 6


class Extended(Wire):
    def negotiate(self, *contexts):
        self.greet()
        assert self.ask(EXTENDED_HEADERS)[-1][0] == ACK
        if contexts:
            answers = self.ask(wire.SET_META, self.meta_data(self.export, *contexts))
            self.ids = [struct.unpack(">I", data[:4])[0] for _, data in answers[:-1]]
        answers = self.ask(wire.GO, self.info_data(self.export))
        assert answers[-1][0] == ACK
        self.flags = next(struct.unpack(">HQH", d)[2] for k, d in answers if k == wire.INFO_REPLY and d[:2] == b"\0\0")
        return self

    @staticmethod
    def header(command, offset=0, length=0, flags=0, cookie=1, magic=REQUEST):
        return struct.pack(">IHHQQQ", magic, flags, command, cookie, offset, length)

    def answer(self):
        """All chunks of the next reply; every header has to repeat the request's offset (P-EXT-10)."""
        chunks, error = [], 0
        while True:
            magic, flags, kind, cookie, echoed, length = self.unpack(">IHHQQQ")
            # P-REP-03, P-REP-09
            assert magic == REPLY and flags in (0, 1)
            if self.offset is not None:
                assert echoed == self.offset
            payload = self.receive(length)
            chunks.append((kind, payload))
            if kind & 0x8000:
                error = struct.unpack(">I", payload[:4])[0]
            if flags & 1:
                return error, cookie, chunks

    offset = None

    def call(self, command, offset=0, length=0, flags=0, cookie=7, data=b""):
        self.offset = offset
        self.request(command, offset, length, flags, cookie, data)
        error, echoed, self.chunks = self.answer()
        assert echoed == cookie
        return error

    def write(self, offset, data, flags=0):
        return self.call(wire.WRITE, offset, len(data), flags | PAYLOAD_LEN, data=data)


@pytest.fixture
def link(serve, disk):
    with Extended(serve(disk).uri) as link:
        yield link.negotiate("base:allocation")
        assert link.call(wire.FLUSH) == 0, "the connection did not survive"


class TestNegotiation:
    # P-EXT-01, P-EXT-03, P-EXT-04, S-NEW-01
    def test_once_and_without_data(self, serve, disk):
        with Wire(serve(disk).uri) as link:
            link.greet()
            assert link.ask(EXTENDED_HEADERS, b"x")[-1][0] == INVALID
            assert link.ask(EXTENDED_HEADERS)[-1][0] == ACK
            assert link.ask(EXTENDED_HEADERS)[-1][0] == INVALID
            assert link.ask(wire.STRUCTURED)[-1][0] == EXT_HEADER_REQD

    def test_export_name_afterwards_is_the_end(self, serve, disk):
        # P-EXT-02
        with Wire(serve(disk, stderr=CUT_OFF).uri) as link:
            link.greet()
            assert link.ask(EXTENDED_HEADERS)[-1][0] == ACK
            link.option(wire.EXPORT_NAME)
            assert link.is_closed()

    def test_structured_replies_may_come_first(self, serve, disk):
        with Extended(serve(disk).uri) as link:
            link.greet()
            assert link.ask(wire.STRUCTURED)[-1][0] == ACK
            assert link.ask(EXTENDED_HEADERS)[-1][0] == ACK
            assert link.ask(wire.GO, link.info_data(""))[-1][0] == ACK
            assert link.call(wire.READ, 0, 512) == 0


class TestRequests:
    def test_write_and_read(self, link):
        # S-NEW-02, P-EXT-06, P-EXT-10, P-REP-03
        data = noise(100_000)
        assert link.write(12_345, data) == 0 and link.chunks == [(wire.NONE, b"")]
        assert link.call(wire.READ, 12_345, 100_000, wire.DF) == 0
        (kind, payload), = [chunk for chunk in link.chunks if chunk[0] != wire.NONE]
        assert kind == wire.DATA and payload == struct.pack(">Q", 12_345) + data

    def test_success_is_a_none_chunk(self, link):
        # P-EXT-10, P-REP-06
        for command in (wire.FLUSH, wire.TRIM, wire.CACHE, wire.ZEROES):
            assert link.call(command, 0, 4096 if command != wire.FLUSH else 0) == 0
            assert link.chunks == [(wire.NONE, b"")]

    def test_errors_are_chunks(self, link):
        # P-ERR-02, P-ERR-03
        assert link.call(wire.READ, 64 * MIB, 1) == EINVAL
        assert link.write(64 * MIB, b"x") == ENOSPC
        assert link.call(100) == EINVAL
        assert link.call(wire.ZEROES, 1, (1 << 64) - 1) == ENOSPC
        assert link.call(wire.TRIM, 1, (1 << 64) - 1) == EINVAL

    @pytest.mark.parametrize("command", [wire.READ, wire.FLUSH, wire.TRIM, wire.CACHE, wire.ZEROES, 99])
    def test_a_payload_where_none_belongs(self, link, command):
        # P-EXT-08, P-EXT-09, S-NEW-03
        assert link.call(command, 0, 5000, PAYLOAD_LEN, data=noise(5000)) == EINVAL

    def test_a_payload_that_is_too_long_is_the_end(self, serve, disk):
        # P-EXT-08, P-SIZE-12
        with Extended(serve(disk, stderr=CUT_OFF).uri) as link:
            link.negotiate()
            link.request(wire.WRITE, 0, 1 << 40, PAYLOAD_LEN)
            try:
                link.answer()
            except wire.Closed:
                return
            assert link.is_closed()

    def test_zeroes_beyond_32_bits(self, serve, directory):
        # P-EXT-06, P-EXT-18
        image = sparse(directory / "big", 16 * GIB, [(15 * GIB, b"x" * 4096)])
        with Extended(serve(image).uri) as link:
            link.negotiate("base:allocation")
            assert link.call(wire.ZEROES, 0, 16 * GIB) == 0
            assert link.call(wire.STATUS, 0, 16 * GIB) == 0
            assert self.extents(link)[0] == (16 * GIB, 3)

    def test_a_read_beyond_the_maximum(self, link):
        # P-CMD-READ-7, P-ERR-05
        assert link.call(wire.READ, 0, 33 * MIB) in (EINVAL, wire.EOVERFLOW)

    @staticmethod
    def extents(link):
        (kind, payload), = [chunk for chunk in link.chunks if chunk[0] != wire.NONE]
        # P-EXT-11, P-EXT-12, S-NEW-04
        assert kind == STATUS_EXT
        context, count = struct.unpack(">II", payload[:8])
        assert context in link.ids and len(payload) == 8 + 16 * count and count
        return list(struct.iter_unpack(">QQ", payload[8:]))

    def test_status(self, link):
        assert link.write(0, noise(64 * KIB)) == 0 and link.call(wire.FLUSH) == 0
        assert link.call(wire.STATUS, 0, 64 * MIB) == 0
        assert self.extents(link) == [(64 * KIB, 0), (64 * MIB - 64 * KIB, 3)]
        assert link.call(wire.STATUS, 0, 64 * MIB, wire.REQ_ONE) == 0
        assert self.extents(link) == [(64 * KIB, 0)]
        assert link.call(wire.STATUS, 64 * MIB, 1) == EINVAL

    def test_status_of_chosen_contexts(self, link):
        # P-EXT-14, P-EXT-15, P-EXT-16, P-EXT-17, P-FLG-03, S-NEW-05
        if not link.flags & 0x1000:
            pytest.skip("BLOCK_STATUS_PAYLOAD is not offered")

        def ask(length, *ids, offset=0):
            data = struct.pack(f">Q{len(ids)}I", length, *ids)
            return link.call(wire.STATUS, offset, len(data), PAYLOAD_LEN, data=data)

        assert ask(64 * MIB, *link.ids) == 0
        assert self.extents(link) == [(64 * MIB, 3)]
        assert ask(64 * MIB) == EINVAL
        assert ask(64 * MIB, 0xDEAD) == EINVAL
        assert ask(64 * MIB, link.ids[0], link.ids[0]) == EINVAL
        assert ask(64 * MIB + 1, *link.ids) == EINVAL
        assert link.call(wire.STATUS, 0, 7, PAYLOAD_LEN, data=bytes(7)) == EINVAL

    def test_pipelined_and_cut_at_odd_places(self, link):
        data = b"".join(Extended.header(wire.WRITE, n * 512, 512, PAYLOAD_LEN, cookie=n) + bytes([n]) * 512 for n in range(100))
        for at in range(0, len(data), 777):
            link.send(data[at:at + 777])
        link.offset = None
        assert sorted(link.answer()[:2] for _ in range(100)) == [(0, n) for n in range(100)]

    def test_a_compact_request_is_the_end(self, serve, disk):
        # P-REQ-05
        with Extended(serve(disk, stderr=CUT_OFF).uri) as link:
            link.negotiate()
            link.send(Wire.header(wire.READ, 0, 512) + bytes(4))
            assert link.is_closed()
