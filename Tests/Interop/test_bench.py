"""`nbd bench` against our server and everybody else's."""

import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

import pytest

from images import KIB, MIB, allocated, noise
from peers import need, run
from server import NBD, unix_uri

SHORT = ["--duration", "0.2", "--ramp", "0.05"]


@pytest.fixture
def directory():
    """In memory: what these tests write must not wait for the machine's disk."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="nbd-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def splitmix(count, seed):
    """The bytes that a WRITE sends."""
    mask, words = (1 << 64) - 1, []
    for _ in range((count + 7) // 8):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        words.append(z ^ (z >> 31))
    return struct.pack(f"<{len(words)}Q", *words)[:count]


def bench(uri, *options, status=0):
    """What it found out."""
    return json.loads(run(NBD, "bench", "--json", *SHORT, *options, uri, status=status).stdout)


def refusal(uri, *options, status=1):
    """The one line that it says instead."""
    done = run(NBD, "bench", *SHORT, *options, uri, status=status)
    assert done.stdout == ""
    line, = done.stderr.splitlines()
    assert line.startswith("nbd: ")
    return line


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    except ConnectionRefusedError:
        return False


def wait_until(condition, server=None):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline and (server is None or server.process.poll() is None), server and server.err
        time.sleep(0.01)


@pytest.fixture(params=["ours", "qemu-nbd", "nbdkit", "nbd-server"])
def peer(request, serve, start, directory, disk):
    """`peer(tcp)` starts a server of that kind and gives the URI of `disk`."""
    path, port = directory / "peer", free_port()
    pid_file = directory / "pid"

    def peer(tcp):
        if request.param == "ours":
            return serve(disk, tcp=["127.0.0.1"]).uri if tcp else serve(disk).uri
        export = ""
        if request.param == "qemu-nbd":
            where = ["-b", "127.0.0.1", "-p", port] if tcp else ["-k", path]
            server = start(need("qemu-nbd"), "-t", "-e", "0", "-f", "raw", *where, disk, await_uri=False)
        elif request.param == "nbdkit":
            where = ["-i", "127.0.0.1", "-p", port] if tcp else ["-U", path]
            server = start(need("nbdkit"), "-f", *where, "file", disk, await_uri=False)
        else:
            export = "disk"
            # It wants a port also when it has a Unix socket. In the foreground it would serve a single client.
            config = directory / "nbd-server.conf"
            config.write_text(f"[generic]\nport = {port}\nlistenaddr = 127.0.0.1\n" + ("" if tcp else f"unixsock = {path}\n")
                              + f"[disk]\nexportname = {disk}\n")
            run(need("nbd-server"), "-C", config, "-p", pid_file)
            server = None
        wait_until(lambda: listens(port) if tcp else path.exists(), server)
        return f"nbd://127.0.0.1:{port}/{export}" if tcp else unix_uri(path, export)

    yield peer
    if pid_file.exists():
        os.kill(int(pid_file.read_text()), signal.SIGTERM)


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_every_pattern_and_mode_with_every_server(peer, tcp):
    uri, modes, operations = peer(tcp), ["simple", "structured", "extended"], 0
    for pattern in ["read", "write", "randread", "randwrite", "rw", "randrw"]:
        for mode in modes:
            found = bench(uri, "--pattern", pattern, "--mode", mode, "--connections", 2, "--depth", 8, "--duration", 0.05, "--ramp", 0)
            assert (found["pattern"], found["connections"], found["depth"], found["block_size"]) == (pattern, 2, 8, 4096)
            assert modes.index(found["mode"]) <= modes.index(mode) and found["errors"] == 0
            operations += found["operations"]
            if pattern.endswith("rw"):
                assert found["reads"]["operations"] + found["writes"]["operations"] == found["operations"]
    assert operations > 0


@pytest.mark.parametrize("options", [["--block-size", "1"], ["--block-size", "32M", "--depth", 2], ["--block-size", "1M", "--depth", 1024],
                                     ["--block-size", "512", "--depth", 1024], ["--block-size", 1000, "--connections", 64]], ids=str)
@pytest.mark.parametrize("pattern", ["randread", "randwrite", "rw"])
def test_sizes_and_depths(serve, disk, pattern, options):
    found = bench(serve(disk).uri, "--pattern", pattern, *options, "--size", "32M", "--duration", 0.5)
    assert found["errors"] == 0 and found["operations"] > 0


def test_numbers_fit_together(serve, disk):
    found = bench(serve(disk).uri, "--block-size", "64k", "--duration", 0.5)
    assert found["seconds"] == 0.5
    assert found["ops_per_second"] == pytest.approx(found["operations"] / 0.5)
    assert found["bytes_per_second"] == pytest.approx(found["ops_per_second"] * 65536)
    latency = [found["latency_us"][key] for key in ("p50", "p90", "p99", "p99.9", "max")]
    assert latency == sorted(latency) and latency[0] > 0
    # Little's law, strictly: 16 requests at once, of which those that count began at most the longest latency before.
    busy = found["latency_us"]["mean"] / 1e6 * found["operations"]
    assert 0 < busy <= 16 * (0.5 + found["latency_us"]["max"] / 1e6) * 1.001


def test_text(serve, disk):
    text = run(NBD, "bench", *SHORT, serve(disk).uri).stdout
    assert [line.split("  ")[0] for line in text.splitlines()] == [
        "what", "where", "how long", "operations", "IOPS", "bandwidth", "latency", "client CPU"]


@pytest.mark.parametrize("mode", ["simple", "structured", "extended"])
def test_the_disk_holds_what_was_written(serve, disk, mode):
    block = splitmix(4096, 7)
    options = ["--pattern", "write", "--size", "256k", "--seed", 7, "--mode", mode, "--connections", 3, "--depth", 8, "--duration", 1]
    bench(serve(disk).uri, *options)
    content = disk.read_bytes()
    assert content[:256 * KIB] == block * 64
    assert content[256 * KIB:] == bytes(len(content) - 256 * KIB)


def test_random_writes_are_whole_blocks(serve, disk):
    bench(serve(disk).uri, "--pattern", "randwrite", "--block-size", 1000, "--size", "1M")
    block, content = splitmix(1000, 1), disk.read_bytes()
    written = [content[at:at + 1000] for at in range(0, MIB - 1000, 1000)]
    assert set(written) <= {block, bytes(1000)} and written.count(block) > 100


def test_reads_change_nothing(serve, disk):
    disk.write_bytes(noise(MIB))
    bench(serve(disk).uri, "--pattern", "read", "--block-size", 1024)
    assert disk.read_bytes() == noise(MIB)


def test_holes_are_data_too(start, directory):
    # nbdkit's sparse memory answers with holes and data, in several chunks.
    path = directory / "socket"
    start(need("nbdkit"), "-f", "-U", path, "memory", "16M", await_uri=False).wait_for_socket(path)
    bench(unix_uri(path), "--pattern", "randwrite", "--size", "4M")
    assert bench(unix_uri(path), "--pattern", "read", "--block-size", "1M")["errors"] == 0


def test_errors_are_counted_named_and_fatal(start, directory):
    path = directory / "socket"
    start(need("nbdkit"), "-f", "-U", path, "--filter=error", "memory", "16M", "error-pread=EIO", "error-pread-rate=10%",
          await_uri=False).wait_for_socket(path)
    for mode in ["simple", "structured"]:
        done = run(NBD, "bench", "--json", "--mode", mode, *SHORT, unix_uri(path), status=1)
        found = json.loads(done.stdout)
        assert found["errors"] > 0 and found["operations"] > 0
        # In the ramp, too.
        assert f"nbd: {found['errors']} requests failed: EIO {found['errors']}\n" == done.stderr


class TestRefusals:
    def test_read_only(self, serve, disk):
        uri = serve(disk, read_only=True).uri
        assert "read-only" in refusal(uri, "--pattern", "randrw")
        assert bench(uri)["operations"] > 0

    def test_too_small(self, serve, directory):
        small = directory / "small"
        small.write_bytes(bytes(4095))
        uri = serve(small).uri
        assert "less than one block" in refusal(uri)
        assert "--size" in refusal(uri, "--size", "4096")

    def test_more_than_the_server_takes(self, start, directory):
        path = directory / "socket"
        start(need("nbdkit"), "-f", "-U", path, "--filter=blocksize-policy", "memory", "16M", "blocksize-minimum=512",
              "blocksize-maximum=1M", await_uri=False).wait_for_socket(path)
        assert "smallest block, 512" in refusal(unix_uri(path), "--block-size", "100")
        assert "more than the server takes, 1048576" in refusal(unix_uri(path), "--block-size", "2M")

    def test_nobody_there(self, directory):
        assert "No such file" in refusal(unix_uri(directory / "nothing"))
        assert "refused" in refusal(f"nbd://127.0.0.1:{free_port()}")
        assert "cannot find host" in refusal("nbd://host.invalid")

    def test_unknown_export(self, serve, disk):
        assert "ERR_UNKNOWN" in refusal(serve(disk, name="disk").uri.replace("disk", "desk", 1))

    def test_wrong_options(self):
        assert "--depth" in refusal("nbd://localhost", "--depth", "0", status=64)
        assert "TLS" in refusal("nbds://localhost")


@pytest.fixture
def load(disk):
    """Starts a load that writes, and returns when it does."""
    clients = []

    def load(uri, *options):
        client = subprocess.Popen([NBD, "bench", "--pattern", "write", "--duration", "60", "--ramp", "0", *options, uri],
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        clients.append(client)
        wait_until(lambda: allocated(disk) > 0)
        time.sleep(0.1)
        return client

    yield load
    for client in clients:
        client.kill()
        client.wait()


def test_a_server_that_dies(serve, disk, load):
    server = serve(disk, check=False)
    client = load(server.uri, "--connections", "4")
    server.kill()
    out, err = client.communicate(timeout=20)
    assert (client.returncode, out) == (1, "")
    assert err in ("nbd: the server closed the connection\n", "nbd: the server broke the connection off\n")


def test_a_server_that_talks_nonsense(directory):
    """It agrees on an export, then answers with zeroes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "socket"))
    listener.listen()

    def serve():
        peer = listener.accept()[0]
        peer.sendall(b"NBDMAGIC" + struct.pack(">QQI", 0x420281861253, 1 << 20, 1) + bytes(124))  # oldstyle: no options
        peer.recv(28)
        peer.sendall(bytes(64))
        while peer.recv(1 << 20):
            pass
        peer.close()
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert "reply magic 0x0" in refusal(unix_uri(directory / "socket"))
    thread.join()
    listener.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_early_with_a_report(serve, disk, load, number):
    client = load(serve(disk).uri, "--json")
    client.send_signal(number)
    found = json.loads(client.communicate(timeout=20)[0])
    assert client.returncode == 0
    assert 0 < found["seconds"] < 60 and found["operations"] > 0
