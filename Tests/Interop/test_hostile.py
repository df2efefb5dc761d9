"""Clients that stall, flood, lie and leave, while a well-behaved one goes on working next to them."""

import contextlib
import socket
import struct
import threading
import time

import pytest

import wire
from images import KIB, MIB, noise
from server import CUT_OFF
from wire import IHAVEOPT, Wire


@contextlib.contextmanager
def bystander(uri, patience=5.0):
    """A client that writes and reads back all the while; ends with an error if it ever waits longer than `patience` seconds."""
    stop, problems, rounds = threading.Event(), [], [0]

    def work():
        try:
            with Wire(uri, timeout=patience) as link:
                link.go()
                while not stop.is_set():
                    data = noise(4096, rounds[0])
                    assert link.call(wire.WRITE, 0, 4096, data=data) == 0
                    assert link.read(0, 4096) == (0, data)
                    rounds[0] += 1
                    time.sleep(0.001)
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
        time.sleep(0.2)
    finally:
        stop.set()
        thread.join()
    assert not problems, f"the bystander suffered: {problems[0]!r}"
    assert rounds[0] > 10


@pytest.fixture
def server(serve, disk):
    return serve(disk, handshake_limit=2, stderr=None)


class TestHandshakes:
    def test_byte_by_byte(self, server):
        # A TCP stream has no messages; every byte may come alone.
        with Wire(server.uri) as link:
            magic = link.receive(18)
            assert magic[:8] == b"NBDMAGIC"
            data = struct.pack(">I", 3) + struct.pack(">QII", IHAVEOPT, wire.STRUCTURED, 0)
            go = Wire.info_data("")
            data += struct.pack(">QII", IHAVEOPT, wire.GO, len(go)) + go
            for byte in data:
                link.send(bytes([byte]))
                time.sleep(0.002)
            assert link.replies(wire.STRUCTURED)[-1][0] == wire.ACK
            assert link.replies(wire.GO)[-1][0] == wire.ACK
            for byte in Wire.header(wire.WRITE, 5, 3, cookie=9) + b"abc" + Wire.header(wire.READ, 4, 5, cookie=10):
                link.send(bytes([byte]))
                time.sleep(0.002)
            assert link.answer()[:2] == (0, 9)
            assert link.answer()[:2] == (0, 10)

    @pytest.mark.parametrize("beginning", [
        b"", b"\0\0", b"\0\0\0\3", b"\0\0\0\3IHAVEO", b"\0\0\0\3" + struct.pack(">QII", IHAVEOPT, 7, 100) + b"abc",
    ], ids=["nothing", "half the flags", "flags", "half an option", "half the data"])
    def test_a_client_that_stalls_is_dropped(self, server, beginning):
        # S-HS-11, S-CVE-07, S-BUG-18, P-HS-14
        with bystander(server.uri), Wire(server.uri) as link:
            link.receive(18)
            link.send(beginning)
            begun = time.monotonic()
            assert link.is_closed()
            assert 1 <= time.monotonic() - begun <= 6

    def test_dripping_bytes_does_not_extend_the_limit(self, server):
        # S-HS-11: the limit is for the whole handshake, not for the next byte
        with Wire(server.uri) as link:
            link.receive(18)
            begun = time.monotonic()
            with pytest.raises(wire.Closed):
                link.send(b"\0\0\0\3")
                while time.monotonic() - begun < 10:
                    link.send(struct.pack(">QII", IHAVEOPT, wire.LIST, 0))
                    link.replies(wire.LIST)
                    time.sleep(0.2)
            assert time.monotonic() - begun <= 6

    def test_the_limit_ends_with_the_handshake(self, server):
        # S-CLI-12: idle in transmission is no crime
        with Wire(server.uri) as link:
            link.go()
            time.sleep(3.5)
            assert link.read(0, 4) == (0, bytes(4))

    def test_an_option_of_100_mb(self, server):
        # S-OPT-03, S-CVE-05, S-LIM-03, P-OPT-17
        with bystander(server.uri), Wire(server.uri) as link:
            link.greet()
            before, _ = server.memory()
            with pytest.raises(wire.Closed):
                link.option(99, b"", length=100_000_000)
                for _ in range(1600):
                    link.send(bytes(64 * KIB))
                kind, = {kind for kind, _ in link.replies(99)}
                assert kind & wire.ERROR_BIT
                raise wire.Closed  # read over in small pieces: allowed as well
            assert server.memory()[1] - before < 20 * MIB

    @pytest.mark.parametrize("seed", range(8))
    def test_garbage(self, server, seed):
        with bystander(server.uri):
            for n in range(20):
                with contextlib.suppress(wire.Closed, OSError), Wire(server.uri, timeout=0.2) as link:
                    if n % 2:
                        link.receive(18)
                        link.send(b"\0\0\0\3")
                    if n % 4 == 3:
                        link.send(struct.pack(">Q", IHAVEOPT))
                    link.send(noise(3000, seed * 100 + n))
                    link.link.shutdown(socket.SHUT_WR)
                    while link.link.recv(4096):
                        pass

    def test_hundreds_of_options(self, server):
        # S-OPT-10: a cap on options or the time limit ends it
        with bystander(server.uri), Wire(server.uri) as link:
            link.greet()
            with pytest.raises(wire.Closed):
                for _ in range(1_000_000):
                    link.ask(wire.LIST)

    def test_a_client_that_never_reads_its_option_replies(self, server):
        # Replies pile up: the server has to stop reading or hang up, not to remember them all.
        with bystander(server.uri), Wire(server.uri, timeout=1) as link:
            link.greet()
            before, _ = server.memory()
            options = struct.pack(">QII", IHAVEOPT, wire.LIST, 0) * 1000
            with contextlib.suppress(wire.Closed, TimeoutError):
                for _ in range(1000):
                    link.send(options)
            assert server.memory()[1] - before < 32 * MIB

    def test_connects_and_leaves(self, server):
        # S-HS-07, S-HS-08, S-CVE-01, S-NEW-14
        before = server.descriptors()
        with bystander(server.uri):
            for n in range(300):
                link, _ = wire.dial(server.uri)
                if n % 3 == 0:
                    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif n % 3 == 1:
                    link.recv(18)
                link.close()
        server.wait_for(lambda: server.descriptors() <= before, "closed descriptors")


class TestRequests:
    def test_half_a_header_then_gone(self, server):
        # S-REQ-02
        with bystander(server.uri):
            for count in range(1, 28):
                with Wire(server.uri) as link:
                    link.go()
                    link.send(Wire.header(wire.WRITE, 0, 512)[:count])

    def test_half_a_payload_then_gone(self, server, disk):
        # S-REQ-10: what is incomplete is not written
        with Wire(server.uri) as link:
            link.go()
            link.request(wire.WRITE, MIB, 8 * MIB, data=b"\xee" * (4 * MIB))
        with Wire(server.uri) as link:
            link.go()
            assert link.call(wire.FLUSH) == 0

    def test_gone_while_megabytes_are_on_their_way(self, server):
        # S-CLI-10, S-REP-11, S-CVE-02
        with bystander(server.uri):
            for _ in range(20):
                with Wire(server.uri) as link:
                    link.go()
                    link.send(b"".join(Wire.header(wire.READ, 0, 8 * MIB, cookie=n) for n in range(8)))
                    link.receive(100)

    def test_a_slow_reader_delays_nobody(self, server):
        # S-CO-06, S-BUG-10
        with bystander(server.uri), Wire(server.uri) as link:
            link.go()
            before, _ = server.memory()
            link.link.settimeout(1)
            with contextlib.suppress(TimeoutError):
                for n in range(2000):
                    link.send(Wire.header(wire.READ, 0, 4 * MIB, cookie=n))
            time.sleep(2)
            # The replies that wait are bounded, however many were asked for.
            assert server.memory()[1] - before < 300 * MIB

    def test_what_a_slow_reader_gets_is_right(self, serve, directory):
        data = noise(4 * MIB)
        (directory / "image").write_bytes(data)
        with Wire(serve(directory / "image").uri) as link:
            link.go()
            link.send(b"".join(Wire.header(wire.READ, 0, 4 * MIB, cookie=n) for n in range(12)))
            time.sleep(1)
            seen = set()
            for _ in range(12):
                error, cookie = link.simple()
                assert error == 0 and link.receive(4 * MIB) == data
                seen.add(cookie)
            assert seen == set(range(12))

    def test_twenty_half_payloads_of_32_mib(self, serve, disk):
        # S-CO-07, S-REQ-09: memory has a bound for the whole process, not only for each client
        server = serve(disk, extra=["--memory-limit=128M"], stderr=CUT_OFF + "|in use: clients wait")
        before, _ = server.memory()
        with self.hoarders(server, 20):
            peak = server.memory()[1] - before
            assert peak < 192 * MIB, f"{peak >> 20} MiB"
        # … and it is given back, or at least used again
        with Wire(server.uri) as link:
            link.go()
            assert link.call(wire.WRITE, 0, 32 * MIB, data=bytes(32 * MIB)) == 0

    def test_hoarders_of_memory_starve_nobody(self, serve, disk):
        # S-CO-06, S-CO-07
        server = serve(disk, extra=["--memory-limit=128M"], stderr=CUT_OFF + "|in use: clients wait")
        with bystander(server.uri, patience=2), self.hoarders(server, 8):
            time.sleep(3)

    @staticmethod
    @contextlib.contextmanager
    def hoarders(server, count):
        """Clients that announce 32 MiB, send half of it and wait."""
        with contextlib.ExitStack() as stack:
            links = [stack.enter_context(Wire(server.uri, timeout=1)) for _ in range(count)]
            for link in links:
                link.go()
            for link in links:
                link.link.setblocking(False)
                link.send(Wire.header(wire.WRITE, 0, 32 * MIB))
            payload = memoryview(bytes(16 * MIB))
            sent = [0] * count
            deadline = time.monotonic() + 1.5
            while time.monotonic() < deadline:
                for n, link in enumerate(links):
                    with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                        sent[n] += link.link.send(payload[sent[n]:sent[n] + MIB]) if sent[n] < len(payload) else 0
            # The server stops reading from those for whom there is no memory.
            assert sum(count == len(payload) for count in sent) >= 2
            yield

    def test_thousands_of_requests_in_one_packet(self, server):
        # S-CO-02, S-CO-03: the surplus waits, nothing is lost
        with Wire(server.uri) as link:
            link.go()
            count = 5000
            sender = threading.Thread(target=link.send, args=(
                b"".join(Wire.header(wire.READ, n * 16, 16, cookie=n) for n in range(count)),))
            sender.start()
            seen = set()
            for _ in range(count):
                error, cookie = link.simple()
                assert error == 0
                link.receive(16)
                seen.add(cookie)
            sender.join()
            assert seen == set(range(count))


class TestLimits:
    def test_connections_beyond_the_limit(self, serve, disk):
        # S-SRV-04, S-LIM-13, S-NEW-07: they wait or are turned away; a place that becomes free is given on
        server = serve(disk, connections=3, stderr=None)
        with contextlib.ExitStack() as stack:
            links = [stack.enter_context(Wire(server.uri, timeout=2)) for _ in range(3)]
            for link in links:
                link.go()
            with Wire(server.uri, timeout=1) as late, pytest.raises((wire.Closed, TimeoutError)):
                late.go()
            for link in links:
                assert link.read(0, 4) == (0, bytes(4))
        with Wire(server.uri) as link:
            assert link.go().read(0, 4) == (0, bytes(4))

    def test_more_connections_than_descriptors(self, serve, disk):
        # EMFILE at accept must neither end the server nor make it spin
        import resource
        server = serve(disk, connections=10_000, stderr=None,
                       preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
        with contextlib.ExitStack() as stack, Wire(server.uri) as first:
            first.go()
            for _ in range(100):
                link, _ = wire.dial(server.uri)
                stack.callback(link.close)
            time.sleep(0.5)
            begun = server.cpu_seconds()
            time.sleep(2)
            assert server.cpu_seconds() - begun < 1, "it spins"
            assert first.read(0, 4) == (0, bytes(4))
        with Wire(server.uri) as link:
            link.go()
