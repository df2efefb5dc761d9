"""nbd-client, socket activation, and servers of other makes as neighbours."""

import os
import re
import signal
import socket

import pytest

import server as servers
from images import MIB, noise, random_file, sha256, sparse
from peers import need, need_libnbd, out, run


def test_nbd_client_lists(serve, disk):
    # P-OPT-06, S-LIST-04
    client = need("nbd-client")
    server = serve(disk, tcp=["127.0.0.1"], name="shelf")
    assert "shelf" in out(client, "-l", "127.0.0.1", "-p", server.port)


def test_nbdsh(serve, disk):
    script = """
h.set_strict_mode(0)
h.connect_uri("URI")
h.pwrite(b"nbdsh", 100)
assert h.pread(5, 100) == b"nbdsh"
try:
    h.pwrite(b"x", h.get_size())
except nbd.Error as error:
    assert error.errno == "ENOSPC", error
else:
    raise AssertionError("a write past the end")
"""
    # nbdsh takes the first python3 on the path; the binding belongs to the system's
    run(need("nbdsh"), "-c", script.replace("URI", serve(disk).uri), env={"PATH": "/usr/bin:/bin"})


class TestSingle:
    """One client on standard input."""

    def test_of_libnbd(self, disk):
        nbd = need_libnbd()
        handle = nbd.NBD()
        handle.connect_command([servers.NBD, "serve", "--single", str(disk)])
        handle.pwrite(b"hello", 0)
        assert handle.pread(5, 0) == b"hello"
        handle.shutdown()
        assert disk.read_bytes()[:5] == b"hello"

    def test_behind_socat(self, disk, directory, start):
        # inetd's way
        path = directory / "s"
        relay = start(need("socat"), f"UNIX-LISTEN:{path},fork", f"EXEC:{servers.NBD} serve --single --read-only {disk}",
                      await_uri=False)
        relay.wait_for_socket(path)
        for _ in range(2):
            assert out(need("nbdinfo"), "--size", servers.unix_uri(path)) == f"{64 * MIB}\n"


class TestSocketActivation:
    # S-SRV-09
    def command(self, disk, *words):
        return [servers.NBD, "serve", *words, str(disk)]

    def test_nbdinfo_in_brackets(self, disk):
        text = out(need("nbdinfo"), "--size", "--", "[", *self.command(disk), "]")
        assert text == f"{64 * MIB}\n"

    def test_libnbd(self, disk):
        nbd = need_libnbd()
        handle = nbd.NBD()
        handle.connect_systemd_socket_activation(self.command(disk))
        handle.pwrite(b"hello", 0)
        assert handle.pread(5, 0) == b"hello"
        handle.shutdown()

    def test_nbdcopy_between_two_children(self, directory):
        image, target = random_file(directory / "image", 8 * MIB), sparse(directory / "target", 8 * MIB)
        run(need("nbdcopy"), "--flush", "--", "[", *self.command(image, "--read-only"), "]", "[", *self.command(target), "]")
        assert sha256(target) == sha256(image)

    def test_several_sockets(self, disk, directory, start):
        # One listener each: a Unix socket and TCP, handed down as descriptors 3 and 4.
        unix, tcp = socket.socket(socket.AF_UNIX), socket.socket()
        unix.bind(str(directory / "s")), tcp.bind(("127.0.0.1", 0))
        unix.listen(), tcp.listen()
        port = tcp.getsockname()[1]
        # The shell sets LISTEN_PID to the process that exec turns into the server (bash: others know descriptors up to 9 only).
        server = start(need("bash"), "-c", f"exec 3<&{unix.fileno()} 4<&{tcp.fileno()}; LISTEN_PID=$$ exec \"$@\"", "sh",
                       *self.command(disk), env={"LISTEN_FDS": "2"}, await_uri=False,
                       pass_fds=(unix.fileno(), tcp.fileno()))
        unix.close(), tcp.close()
        for uri in (servers.unix_uri(directory / "s"), f"nbd://127.0.0.1:{port}"):
            assert out(need("nbdinfo"), "--size", uri) == f"{64 * MIB}\n"
        # The listening socket was not ours to make, so it is not ours to unlink.
        server.stop()
        assert os.path.exists(directory / "s")

    def test_names_of_sockets(self, disk, directory, start):
        # Two Unix sockets; the configuration says of the one called "quiet" that it tells no names.
        (directory / "nbd.toml").write_text(f"""
            [[exports]]
            name = "disk"
            file = '{disk}'
            [[listeners]]
            activated = "quiet"
            list = false
            """)
        paths = [directory / "open", directory / "quiet"]
        sockets = [socket.socket(socket.AF_UNIX) for _ in paths]
        for one, path in zip(sockets, paths):
            one.bind(str(path)), one.listen()
        server = start(need("bash"), "-c",
                       f"exec 3<&{sockets[0].fileno()} 4<&{sockets[1].fileno()}; LISTEN_PID=$$ exec \"$@\"", "sh",
                       servers.NBD, "serve", "-v", "--config", directory / "nbd.toml",
                       env={"LISTEN_FDS": "2", "LISTEN_FDNAMES": "open:quiet"}, await_uri=False,
                       pass_fds=[one.fileno() for one in sockets])
        for one in sockets:
            one.close()
        assert "disk" in out(need("nbdinfo"), "--list", servers.unix_uri(paths[0]))
        run(need("nbdinfo"), "--list", servers.unix_uri(paths[1]), status=1)
        for path in paths:
            assert out(need("nbdinfo"), "--size", servers.unix_uri(path, "disk")) == f"{64 * MIB}\n"
        assert "name=quiet" in server.err
        server.stop(stderr="info|debug")

    def test_descriptors_meant_for_somebody_else_are_ignored(self, disk, serve):
        # LISTEN_PID of another process
        server = serve(disk, env={"LISTEN_PID": "1", "LISTEN_FDS": "1"})
        assert out(need("nbdinfo"), "--size", server.uri) == f"{64 * MIB}\n"


class TestLocks:
    """Locks as QEMU takes them (OFD byte ranges): whoever writes keeps other writers out."""

    def qemu_nbd(self, start, directory, disk, *words):
        path = directory / "qemu"
        process = start(need("qemu-nbd"), "-t", "-f", "raw", "-k", path, *words, disk, await_uri=False)
        process.wait_for_socket(path)
        return process

    def refused(self, disk, *words):
        done = run(servers.NBD, "serve", "--socket", f"{disk}.sock", *words, disk, status=1, limit=20)
        assert str(disk) in done.stderr and re.search("lock|in use", done.stderr)
        assert len(done.stderr.splitlines()) == 1

    def test_qemu_is_kept_out(self, serve, disk, directory):
        serve(disk)
        done = run(need("qemu-nbd"), "-t", "-f", "raw", "-k", directory / "q", disk, status=1, limit=20)
        assert "lock" in done.stderr

    def test_qemu_keeps_us_out(self, start, disk, directory):
        self.qemu_nbd(start, directory, disk)
        self.refused(disk)

    def test_we_keep_ourselves_out(self, serve, disk):
        serve(disk)
        self.refused(disk)

    def test_a_reader_beside_a_writer(self, serve, start, disk, directory):
        # QEMU lets a read-only qemu-nbd in beside a writing one; so do we, whoever comes first
        writer = serve(disk)
        reader = self.qemu_nbd(start, directory, disk, "-r")
        serve(disk, read_only=True).stop()
        writer.stop()
        serve(disk).stop()
        reader.process.terminate()
        reader.wait()
        self.qemu_nbd(start, directory, disk)
        serve(disk, read_only=True)

    def test_readers_coexist(self, serve, start, disk, directory):
        self.qemu_nbd(start, directory, disk, "-r")
        one, two = serve(disk, read_only=True), serve(disk, read_only=True)
        for uri in (one.uri, two.uri, servers.unix_uri(directory / "qemu")):
            assert out(need("nbdinfo"), "--size", uri) == f"{64 * MIB}\n"

    def test_the_lock_goes_with_the_server(self, serve, disk, directory):
        serve(disk).stop()
        serve(disk).stop()
        server = serve(disk, check=False)
        server.process.send_signal(signal.SIGKILL)
        server.wait()
        serve(disk)


class TestNeighbours:
    """The same clients, one end on our server, the other on somebody else's."""

    def test_from_nbdkit(self, serve, start, directory):
        image, target = random_file(directory / "image", 8 * MIB), sparse(directory / "target", 8 * MIB)
        path = directory / "kit"
        kit = start(need("nbdkit"), "-f", "-U", path, "-r", "file", image, await_uri=False)
        kit.wait_for_socket(path)
        server = serve(target)
        run(need("nbdcopy"), "--flush", servers.unix_uri(path), server.uri)
        server.stop()
        assert sha256(target) == sha256(image)

    def test_nbdkit_in_front_of_us(self, serve, start, directory, connect):
        # nbdkit's nbd plugin is a libnbd client
        image = sparse(directory / "image", 8 * MIB)
        path = directory / "kit"
        kit = start(need("nbdkit"), "-f", "-U", path, "nbd", f"uri={serve(image).uri}", await_uri=False)
        kit.wait_for_socket(path)
        handle = connect(servers.unix_uri(path))
        handle.pwrite(noise(MIB), 12345)
        handle.flush()
        assert image.read_bytes()[12345:][:MIB] == noise(MIB)

    def test_qemu_nbd_in_front_of_us(self, serve, start, directory, connect):
        image = sparse(directory / "image", 8 * MIB)
        path = directory / "q"
        front = start(need("qemu-nbd"), "-t", "-f", "raw", "-k", path, serve(image).uri, await_uri=False)
        front.wait_for_socket(path)
        handle = connect(servers.unix_uri(path))
        handle.pwrite(noise(MIB), 12345)
        handle.flush()
        assert image.read_bytes()[12345:][:MIB] == noise(MIB)
