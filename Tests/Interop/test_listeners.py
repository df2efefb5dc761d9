"""Several exports, several addresses."""

import json
import os
import socket
import stat

import pytest

import server as servers
import wire
from images import MIB, sparse
from peers import need, out, run
from server import unix_uri
from wire import Wire


def export(name, path, **more):
    more = "".join(f",{key}={value}" for key, value in more.items())
    return ["--export", f"name={name},file={path}{more}"]


@pytest.fixture
def two(directory):
    one = sparse(directory / "one", MIB, [(0, b"one")])
    two = sparse(directory / "two", 2 * MIB, [(0, b"two")])
    return [*export("a", one, description="first"), *export("b", two, readonly="on")]


class TestExports:
    def test_are_listed_in_order(self, serve, two):
        # S-LIST-02, S-LIST-03
        server = serve(extra=two)
        found = json.loads(out(need("nbdinfo"), "--json", "--list", unix_uri(server.sockets[0])))["exports"]
        assert [(e["export-name"], e.get("description", ""), e["export-size"], e["is_read_only"]) for e in found] == [
            ("a", "first", MIB, False), ("b", "", 2 * MIB, True)]

    def test_are_separate_disks(self, serve, two, connect):
        # S-EXP-01, S-CLI-08
        path = serve(extra=two).sockets[0]
        a, b = connect(unix_uri(path, "a")), connect(unix_uri(path, "b"))
        assert (a.pread(3, 0), b.pread(3, 0)) == (b"one", b"two")
        a.pwrite(b"ONE", 0)
        assert (a.pread(3, 0), b.pread(3, 0)) == (b"ONE", b"two")

    def test_contexts_of_one_do_not_serve_for_another(self, serve, two):
        # S-META-26, S-INFO-21, S-EXPN-08, P-META-12
        with Wire(unix_uri(serve(extra=two).sockets[0])) as link:
            link.greet()
            link.ask(wire.STRUCTURED)
            assert link.ask(wire.SET_META, Wire.meta_data("a", "base:allocation"))[-1][0] == wire.ACK
            assert link.ask(wire.GO, Wire.info_data("b"))[-1][0] == wire.ACK
            assert link.call(wire.STATUS, 0, 512) == wire.EINVAL

    def test_a_default_export_answers_to_the_empty_name(self, serve, two):
        # S-EXPN-04, S-INFO-08, P-OPT-03, P-INFO-07
        path = serve(extra=[*two, "--default-export", "b"]).sockets[0]
        with Wire(unix_uri(path)) as link:
            link.greet()
            answers = link.ask(wire.GO, Wire.info_data("", 1))
            assert (wire.INFO_REPLY, b"\0\1b") in answers and answers[-1][0] == wire.ACK
            assert link.read(0, 3) == (0, b"two")

    def test_without_a_default_the_empty_name_is_unknown(self, serve, two):
        with Wire(unix_uri(serve(extra=two).sockets[0])) as link:
            link.greet()
            assert link.ask(wire.GO, Wire.info_data(""))[-1][0] == wire.UNKNOWN

    def test_the_same_name_twice_is_refused(self, directory, disk):
        # S-EXP-05, S-BUG-08
        done = run(servers.NBD, "serve", "--port=0", *export("a", disk), *export("a", disk), status=64, limit=20)
        assert "'a'" in done.stderr

    def test_other_devices(self, serve, connect):
        path = serve(extra=["--export", "name=m,memory=1M", "--export", "name=n,null=1T", "--export", "name=p,pattern=1M"]).sockets[0]
        memory, null, pattern = (connect(unix_uri(path, name)) for name in "mnp")
        memory.pwrite(b"x", 5)
        assert memory.pread(7, 0) == b"\0\0\0\0\0x\0"
        null.pwrite(b"x" * 4096, 1 << 39)
        assert null.pread(4096, 1 << 39) == bytes(4096)
        assert pattern.pread(16, 4096) == (4096).to_bytes(8, "big") + (4104).to_bytes(8, "big") and pattern.is_read_only()

    def test_hidden_from_the_list(self, serve, two):
        # S-LIST-06, P-OPT-07
        path = serve(extra=[*two, "--no-list"]).sockets[0]
        with Wire(unix_uri(path)) as link:
            link.greet()
            assert link.ask(wire.LIST)[-1][0] == wire.POLICY
            assert link.ask(wire.GO, Wire.info_data("a"))[-1][0] == wire.ACK


class TestListeners:
    def test_one_for_each_address(self, serve, disk, directory):
        server = serve(disk, sockets=[directory / "u1", directory / "u2"], tcp=["127.0.0.1", "::1"])
        server.wait_for(lambda: len(server.uris) == 4, "four URIs")
        assert len(set(server.uris)) == 4
        with Wire(server.uris[0]) as first:
            first.go()
            assert first.call(wire.WRITE, 0, 5, data=b"hello") == 0
            for uri in server.uris:
                with Wire(uri) as link:
                    assert link.go().read(0, 5) == (0, b"hello")

    def test_tcp_over_ipv6(self, serve, disk):
        server = serve(disk, tcp=["::1"])
        assert "[::1]" in server.uri
        assert out(need("nbdinfo"), "--size", server.uri) == f"{64 * MIB}\n"

    def test_a_port_alone_is_loopback(self, start, disk):
        server = start(servers.NBD, "serve", "--port", "0", "--print-uri", disk)
        assert "127.0.0.1" in server.uri or "localhost" in server.uri or "[::1]" in server.uri
        server.stop()

    def test_the_socket_is_for_its_owner_or_the_umask_says(self, serve, disk):
        server = serve(disk, preexec=lambda: os.umask(0o077))
        assert stat.S_IMODE(os.stat(server.sockets[0]).st_mode) & 0o077 == 0

    def test_an_abstract_name_is_what_it_says(self, start, disk):
        # Others connect to exactly these bytes: zeroes behind them would make another name.
        name = f"nbd-test-{os.getpid()}"
        server = start(servers.NBD, "serve", "--print-uri", "--socket", f"@{name}", disk)
        assert f"%00{name}" in server.uri
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(20)
        link.connect(f"\0{name}")
        with Wire.over(link) as wire:
            assert wire.go().read(0, 4) == (0, bytes(4))
        server.stop()

    def test_no_delay_on_tcp(self, serve, disk):
        # S-CLI-11, P-GEN-02: with Nagle and delayed ACKs a request would take 40 ms
        import time
        with Wire(serve(disk, tcp=["127.0.0.1"]).uri) as link:
            link.go(structured=True)
            begun = time.monotonic()
            for _ in range(50):
                assert link.call(wire.READ, 0, 4096) == 0
            assert time.monotonic() - begun < 1

    def test_an_oldstyle_listener(self, serve, disk):
        # S-HS-04, P-HS-13
        server = serve(disk, extra=["--oldstyle", ""])
        with Wire(server.uri) as link:
            magic, old, size, flags = link.unpack(">8sQQI")
            assert magic == b"NBDMAGIC" and old == 0x0000420281861253 and size == 64 * MIB and flags >> 16 == 0
            assert link.receive(124) == bytes(124)
            assert link.read(0, 4) == (0, bytes(4))
