"""The handshake by hand: what a client may say before it has an export, and how far it gets."""

import struct

import pytest

import wire
from images import MIB
from server import CUT_OFF
from wire import ACK, INVALID, POLICY, TOO_BIG, UNKNOWN, UNSUP, Wire

SIZE = 64 * MIB


@pytest.fixture
def server(serve, disk):
    return serve(disk, name="disk", stderr=CUT_OFF)


@pytest.fixture
def link(server):
    with Wire(server.uri) as link:
        assert link.greet() == 3  # S-HS-01, S-HS-02, S-HS-03, P-HS-01, P-HS-02, P-HS-03
        yield link


def final(link, option, data=b""):
    return link.ask(option, data)[-1][0]


def is_alive(link):
    return final(link, wire.LIST) == ACK


class TestExportName:
    @pytest.mark.parametrize("flags, answer", [(1, 134), (3, 10), (0, 134), (2, 10)])
    def test_is_padded_unless_agreed(self, server, flags, answer):
        # S-EXPN-05, S-HS-09, S-HS-12, P-HS-03, P-OPT-01
        with Wire(server.uri) as link:
            link.greet(flags)
            link.option(wire.EXPORT_NAME, b"disk")
            data = link.receive(answer)
            size, transmission_flags = struct.unpack(">QH", data[:10])
            assert size == SIZE and transmission_flags & 1 and data[10:] == bytes(answer - 10)
            # S-EXPN-09: no promise of alignment was made, so any is served
            assert link.read(513, 7) == (0, bytes(7))

    @pytest.mark.parametrize("name", [b"other", b"disk\0", b"disk\0more", b"\xff\xfe", b"x" * 4096, b"x" * 4097, b""],
                             ids=["other", "NUL at the end", "NUL inside", "no UTF-8", "4096", "4097", "empty"])
    def test_of_an_unknown_export_is_the_end(self, server, name):
        # S-EXPN-01, S-EXPN-02, S-EXPN-03, S-BUG-19, P-OPT-02; "" is the default export when there is one
        with Wire(server.uri) as link:
            link.greet()
            link.option(wire.EXPORT_NAME, name)
            if name:
                assert link.is_closed()
        with Wire(server.uri) as link:
            link.go()

    def test_of_a_client_that_is_not_fixed_is_all_it_may_say(self, server):
        # S-HS-12, P-HS-08
        with Wire(server.uri) as link:
            link.greet(0)
            link.option(wire.LIST)
            assert link.is_closed()


@pytest.mark.parametrize("flags", [4, 0x80000000, 0xFFFFFFFF])
def test_unknown_client_flags_are_the_end(server, flags):
    # S-HS-10, P-HS-06
    with Wire(server.uri) as link:
        link.greet(flags)
        assert link.is_closed()


@pytest.mark.parametrize("number", [0, 4, 12, 99, 0xFFFFFFFF])
@pytest.mark.parametrize("data", [b"", b"x" * 5000], ids=["no data", "5000 bytes"])
def test_unknown_options_are_refused_and_read_over(link, number, data):
    # S-OPT-08, P-HS-10, P-GEN-04
    assert final(link, number, data) == UNSUP
    assert is_alive(link)


def test_a_wrong_option_magic_is_the_end(link):
    # S-OPT-02, P-HS-15
    link.send(struct.pack(">QII", 0x1234, wire.LIST, 0))
    assert link.is_closed()


class TestListAndAbort:
    def test_list_with_data_is_invalid(self, link):
        # S-LIST-01, P-OPT-06
        assert final(link, wire.LIST, b"x") == INVALID
        assert is_alive(link)

    @pytest.mark.parametrize("data", [b"", b"x" * 100])
    def test_abort_is_acknowledged(self, link, data):
        # S-ABRT-01, S-ABRT-02, P-OPT-04, P-OPT-05
        assert final(link, wire.ABORT, data) == ACK
        assert link.is_closed()


class TestInfo:
    @pytest.mark.parametrize("data, expected", [
        (b"", INVALID), (b"\0\0\0", INVALID), (struct.pack(">IH", 0, 1), INVALID), (struct.pack(">IHH", 0, 0, 0), INVALID),
        (struct.pack(">I4sH", 5, b"disk", 0), INVALID), (struct.pack(">I4sH", 0xFFFFFFFF, b"disk", 0), INVALID),
        (struct.pack(">I4sHB", 4, b"disk", 0, 1), INVALID), (Wire.info_data("d\0sk"), INVALID),
        (Wire.info_data("x" * 4097), INVALID), (Wire.info_data("nothing"), UNKNOWN), (Wire.info_data("x" * 4096), UNKNOWN),
    ], ids=["empty", "3 bytes", "no count", "count too small", "name too long by 1", "name 2^32-1", "half an id", "NUL",
            "name of 4097", "unknown", "unknown of 4096"])
    def test_bad_data(self, link, data, expected):
        # S-INFO-02, S-INFO-03, S-INFO-04, S-INFO-05, S-INFO-07, S-CVE-04, S-CVE-15, P-INFO-02, P-INFO-10
        for option in (wire.INFO, wire.GO):
            answers = link.ask(option, data)
            assert [kind for kind, _ in answers] == [expected]
        assert is_alive(link)

    def test_the_text_of_an_error_does_not_echo_a_long_name(self, link):
        # S-OPT-07, S-LIM-06, S-CVE-06, P-GEN-06
        text = link.ask(wire.INFO, Wire.info_data("\x1b[31m" + "y" * 4000))[-1][1]
        assert len(text) < 900 and b"\x1b" not in text

    @pytest.mark.parametrize("infos", [(), (1,), (3,), (0, 1, 2, 3), (3, 3, 3), (77, 0xFFFF)])
    def test_order_and_contents(self, link, infos):
        # S-INFO-06, S-INFO-10, S-INFO-14, S-INFO-15, P-INFO-03, P-INFO-04, P-INFO-06, P-INFO-09, P-INFO-15
        answers = link.ask(wire.INFO, Wire.info_data("disk", *infos))
        assert answers[-1][0] == ACK
        kinds = [struct.unpack(">H", data[:2])[0] for kind, data in answers if kind == wire.INFO_REPLY]
        assert len(kinds) == len(set(kinds))
        assert kinds.index(3) < kinds.index(0)
        assert (1 in kinds) or 1 not in infos
        minimum, preferred, maximum = next(
            struct.unpack(">HIII", d)[1:] for k, d in answers if k == wire.INFO_REPLY and d[:2] == b"\0\3")
        assert minimum == 1 and preferred >= 512 and maximum == 32 * MIB

    def test_info_then_go_say_the_same(self, link):
        # P-INFO-01, P-INFO-12, S-INFO-18, P-INFO-13
        data = Wire.info_data("disk", 1, 3)
        assert sorted(link.ask(wire.INFO, data)) == sorted(link.ask(wire.GO, data))
        assert link.read(0, 4) == (0, bytes(4))


class TestStructuredReplies:
    def test_are_agreed_once(self, link):
        # S-SR-01, S-SR-02, S-SR-03, P-OPT-10, P-OPT-14
        assert final(link, wire.STRUCTURED, b"x") == INVALID
        assert final(link, wire.STRUCTURED) == ACK
        assert final(link, wire.STRUCTURED) in (INVALID, ACK)
        assert is_alive(link)

    def test_switch_df_on(self, server):
        # S-SR-04, S-EXPN-06, S-EXP-09, P-FLG-04
        # ROTATIONAL is left out of it: it depends on the disk below (S-EXP-10)
        with Wire(server.uri) as plain, Wire(server.uri) as structured:
            assert plain.go().flags & ~0x10 == 0x0D6D
            assert structured.go(structured=True).flags & ~0x10 == 0x0DED

    def test_read_only_flags(self, serve, disk):
        # S-EXP-09
        uri = serve(disk, read_only=True).uri
        with Wire(uri) as plain, Wire(uri) as structured:
            assert plain.go().flags & ~0x10 == 0x050F
            assert structured.go(structured=True).flags & ~0x10 == 0x058F


class TestMetaContexts:
    @pytest.fixture
    def link(self, link):
        assert final(link, wire.STRUCTURED) == ACK
        return link

    @pytest.mark.parametrize("data", [
        b"", b"\0\0\0\4disk", struct.pack(">I4sI", 4, b"disk", 1), struct.pack(">I4sII", 4, b"disk", 1, 5),
        struct.pack(">I4sII", 4, b"disk", 1, 0xFFFFFFFF), struct.pack(">I4sI", 0x7FFFFFFF, b"disk", 0),
        Wire.meta_data("disk", "base:\0allocation"),
        Wire.meta_data("disk", "base:allocation") + b"left over",  # S-BUG-01, S-META-25, S-OPT-04, P-OPT-16
    ], ids=["empty", "no count", "no query", "no text", "text 2^32-1", "name 2^31-1", "NUL", "left over"])
    def test_bad_data(self, link, data):
        # S-META-06, S-META-08, S-META-09, P-META-03
        for option in (wire.LIST_META, wire.SET_META):
            assert final(link, option, data) == INVALID
            assert is_alive(link)

    def test_of_an_unknown_export(self, link):
        # S-META-07
        for option in (wire.LIST_META, wire.SET_META):
            assert final(link, option, Wire.meta_data("none", "base:allocation")) == UNKNOWN

    def test_selection(self, link):
        # S-META-11, S-META-12, S-META-13, S-META-18, S-META-19, P-META-07, P-META-10
        for queries, count in [([], 0), (["base:"], 0), (["base:allocation"], 1), (["base:allocation"] * 5, 1),
                               (["x-y:z", "nothing", "", "base:nope"], 0)]:
            answers = link.ask(wire.SET_META, Wire.meta_data("disk", *queries))
            assert len(answers) == count + 1 and answers[-1][0] == ACK

    def test_a_failing_set_clears(self, link):
        # S-META-02, S-META-04, S-BUG-15, P-META-11
        assert len(link.ask(wire.SET_META, Wire.meta_data("disk", "base:allocation"))) == 2
        assert final(link, wire.SET_META, Wire.meta_data("none", "base:allocation")) == UNKNOWN
        assert final(link, wire.GO, Wire.info_data("disk")) == ACK
        assert link.call(wire.STATUS, 0, 512) == wire.EINVAL

    def test_set_needs_structured_replies(self, server):
        # P-META-09
        with Wire(server.uri) as link:
            link.greet()
            assert final(link, wire.SET_META, Wire.meta_data("disk", "base:allocation")) == INVALID
            assert is_alive(link)

    def test_too_many_queries(self, link):
        # S-META-24
        assert final(link, wire.LIST_META, Wire.meta_data("disk", *["x-a:b"] * 100_000)) in (TOO_BIG, INVALID)
        assert is_alive(link)


def test_starttls_is_refused_by_policy(link):
    # S-TLS-06, P-TLS-04
    assert final(link, wire.STARTTLS) in (POLICY, UNSUP)
    assert is_alive(link)


def test_options_may_be_pipelined(link):
    # S-OPT-12
    one = struct.pack(">QII", wire.IHAVEOPT, wire.LIST, 0)
    link.send(one * 10 + struct.pack(">QII", wire.IHAVEOPT, 99, 3) + b"abc")
    for _ in range(10):
        assert [kind for kind, _ in link.replies(wire.LIST)] == [wire.SERVER, ACK]
    assert link.replies(99)[-1][0] == UNSUP
