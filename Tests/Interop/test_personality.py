"""Called `qemu-nbd`, the program behaves like QEMU's: the same command line, beside the real one where it is installed."""

import json
import os
import pathlib
import shutil
import signal
import socket
import time

import pytest

import server as servers
from images import MIB, noise, sparse
from peers import need, out, run
from server import unix_uri


@pytest.fixture(scope="module")
def link(tmp_path_factory):
    path = tmp_path_factory.mktemp("bin") / "qemu-nbd"
    path.symlink_to(servers.NBD)
    return path


@pytest.fixture(params=["ours", "theirs"])
def qemu_nbd(request, link):
    """Every test of this file runs against both: what the real one does is what ours has to do."""
    return link if request.param == "ours" else pathlib.Path(need("qemu-nbd"))


@pytest.fixture
def launch(start, directory, qemu_nbd):
    count = 0

    def launch(*words, at=None):
        nonlocal count
        count += 1
        path = at or directory / f"q{count}"
        process = start(qemu_nbd, "-f", "raw", "-k", path, *words, await_uri=False)
        process.sockets = [path]
        process.wait_for_socket(path)
        process.uri = unix_uri(path)
        return process
    return launch


def info(uri):
    export, = json.loads(out(need("nbdinfo"), "--json", uri))["exports"]
    return export


class TestServing:
    def test_ends_after_the_last_client(self, launch, disk):
        # S-SRV-07
        server = launch(disk)
        assert info(server.uri)["export-size"] == 64 * MIB
        assert server.wait(10) == 0
        assert not os.path.exists(server.sockets[0])

    def test_a_client_that_never_negotiated_does_not_count(self, launch, disk):
        # S-CLI-05, S-SRV-07
        server = launch(disk)
        socket.socket(socket.AF_UNIX).connect(str(server.sockets[0]))
        run(need("nbdinfo"), "--list", server.uri)  # may end it, if it went as far as GO
        time.sleep(0.3)
        if server.process.poll() is None:
            server.stop(stderr=None)

    def test_stays_with_persistent(self, launch, disk):
        server = launch("-t", disk)
        for _ in range(3):
            info(server.uri)
        server.stop()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_signals_end_it(self, launch, disk, number):
        # S-SRV-08
        server = launch("-t", disk)
        info(server.uri)
        server.stop(signal_number=number)

    def test_shared_lets_so_many_in(self, launch, disk, connect):
        # S-SRV-06
        server = launch("-t", "-e", "2", disk)
        one, two = connect(server.uri), connect(server.uri)
        third = socket.socket(socket.AF_UNIX)
        third.settimeout(0.5)
        third.connect(str(server.sockets[0]))
        with pytest.raises(TimeoutError):
            third.recv(1)  # waits in the backlog
        one.shutdown()
        third.settimeout(10)
        assert third.recv(8) == b"NBDMAGIC"
        assert two.pread(4, 0) == bytes(4)

    def test_read_only(self, launch, disk):
        # S-EXP-09
        assert info(launch("-t", "-r", disk).uri)["is_read_only"]

    def test_name_and_description(self, launch, disk):
        server = launch("-t", "-x", "a b", "-D", "words", disk)
        found = info(unix_uri(server.sockets[0], "a b"))
        assert (found["export-name"], found["description"]) == ("a b", "words")

    def test_offset(self, launch, directory, connect):
        # S-EXP-07
        image = sparse(directory / "image", 2 * MIB, [(MIB, b"here")])
        handle = connect(launch("-t", "-o", str(MIB), image).uri)
        assert handle.get_size() == MIB and handle.pread(4, 0) == b"here"
        handle.pwrite(b"gone", 0)
        handle.flush()
        assert image.read_bytes()[MIB:MIB + 4] == b"gone"

    def test_long_options(self, start, qemu_nbd, directory, disk):
        path = directory / "long"
        server = start(qemu_nbd, "--persistent", "--format=raw", f"--socket={path}", "--shared=0", "--read-only",
                       "--export-name=n", "--description=d", "--cache=writeback", "--discard=unmap", disk, await_uri=False)
        server.sockets = [path]
        server.wait_for_socket(path)
        assert info(unix_uri(path, "n"))["description"] == "d"
        server.stop()

    def test_tcp(self, start, qemu_nbd, disk):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        server = start(qemu_nbd, "-t", "-f", "raw", "-b", "127.0.0.1", "-p", port, disk, await_uri=False)
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline and server.process.poll() is None, server.err
                time.sleep(0.02)
        assert info(f"nbd://127.0.0.1:{port}")["export-size"] == 64 * MIB
        server.stop(stderr=None)


class TestForking:
    def test_returns_when_ready(self, qemu_nbd, directory, disk):
        # S-SRV-10, S-NEW-20: the parent ends with 0 once clients are welcome, and closes its ends of the pipes
        path, pid_file = directory / "s", directory / "pid"
        run(qemu_nbd, "--fork", "-t", "-f", "raw", "-k", path, "--pid-file", pid_file, disk, limit=20)
        pid = int(pid_file.read_text())
        try:
            assert info(unix_uri(path))["export-size"] == 64 * MIB
        finally:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not os.path.exists(path)

    def test_fails_in_the_parent(self, qemu_nbd, directory):
        done = run(qemu_nbd, "--fork", "-f", "raw", "-k", directory / "s", directory / "absent", status=1, limit=20)
        assert "absent" in done.stderr

    def test_pid_file_holds_the_process(self, launch, directory, disk):
        pid_file = directory / "pid"
        server = launch("-t", "--pid-file", pid_file, disk)
        # theirs makes the file after the socket
        server.wait_for(lambda: pid_file.exists() and pid_file.read_text(), "a pid file")
        assert int(pid_file.read_text()) == server.process.pid
        server.stop()


class TestRefusing:
    @pytest.mark.parametrize("words", [
        ["absent"], [], ["a", "b"], ["--no-such-option", "absent"], ["-e", "-1", "disk"], ["-o", "x", "disk"],
        ["-k", "relative", "disk"], ["--cache=best", "disk"], ["--discard=maybe", "disk"],
        ["-f", "nonsense", "disk"], ["-k", "/nowhere/at/all/s", "disk"],
    ], ids=lambda words: " ".join(words) or "nothing")
    def test_exits_with_1_and_says_why(self, qemu_nbd, directory, disk, words):
        shutil.copy(disk, directory / "b")
        done = run(qemu_nbd, *words, status=1, limit=20, cwd=directory)
        assert done.stderr.strip() and done.stdout == ""

    def test_help_and_version(self, qemu_nbd):
        text = run(qemu_nbd, "--help").stdout
        for option in ("--persistent", "--shared", "--socket", "--export-name", "--fork", "--pid-file"):
            assert option in text
        assert "qemu-nbd" in run(qemu_nbd, "--version").stdout


def test_activation(qemu_nbd, disk):
    # S-SRV-09
    text = out(need("nbdinfo"), "--size", "--", "[", str(qemu_nbd), "-r", "-f", "raw", str(disk), "]")
    assert text == f"{64 * MIB}\n"


class TestSideBySide:
    @pytest.fixture
    def describe(self, start, directory, link):
        def describe(program, *words):
            path = directory / pathlib.Path(program).parent.name
            server = start(program, "-t", "-f", "raw", "-k", path, *words, await_uri=False)
            server.wait_for_socket(path)
            found = json.loads(out(need("nbdinfo"), "--json", unix_uri(path)))
            extents = json.loads(out(need("nbdinfo"), "--json", "--map", unix_uri(path)))
            server.process.terminate()
            server.wait()
            text = json.dumps([found, extents]).replace(str(path), "SOCKET")
            return json.loads(text)

        return lambda *words: (describe(link, *words), describe(need("qemu-nbd"), *words))

    # What differs on purpose, and where it is said.
    DIFFERENT = {
        "block_size_preferred",  # S-INFO-12: we give the backend's optimal size
        "is_rotational",  # S-EXP-10: theirs never says so
    }

    @pytest.mark.parametrize("words", [[], ["-r"], ["-e", "0"], ["-D", "text"]], ids=lambda words: " ".join(words) or "plain")
    def test_the_same_image_looks_the_same(self, describe, directory, words):
        # S-EXP-09, S-INFO-10, S-INFO-13, S-BST-07
        image = sparse(directory / "image", 8 * MIB, [(MIB, noise(MIB)), (5 * MIB, noise(64 << 10))])
        ours, theirs = describe(*words, image)
        for side in (ours, theirs):
            for export in side[0]["exports"]:
                for key in self.DIFFERENT:
                    export.pop(key, None)
        assert ours == theirs

    def test_an_odd_size_is_kept(self, describe, directory):
        # S-BUG-13: theirs says 1024
        ours, theirs = describe("-r", sparse(directory / "image", 1000))
        assert ours[0]["exports"][0]["export-size"] == 1000
        assert theirs[0]["exports"][0]["export-size"] == 1024
