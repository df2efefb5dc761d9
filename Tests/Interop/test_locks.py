"""Who may have an image at once: programs of ours and QEMU's, and two exports of one process (S-BLK-15)."""

import fcntl
import os
import socket
import struct

import pytest

import server as servers
from images import MIB
from peers import need, run
from qcow2_images import create, data_file, write

BUSY = "Is another process using the image"


def locked(path):
    """The bytes of a file that somebody holds a lock on."""
    found = []
    with open(path, "r+b") as file:
        for byte in [*range(100, 104), *range(200, 204)]:
            lock = fcntl.fcntl(file, fcntl.F_OFD_GETLK,
                               struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
            if struct.unpack("hhqqi4x", lock)[0] != fcntl.F_UNLCK:
                found.append(byte)
    return found


@pytest.fixture
def image(directory):
    return write(create(directory / "a.qcow2", 8 * MIB), "write -P 1 0 4M")


@pytest.fixture
def qemu_nbd(start, directory):
    """`qemu_nbd("-f", "raw", image)`, once it has opened everything: it listens before that, and greets after it."""
    count = 0

    def qemu_nbd(*words):
        nonlocal count
        count += 1
        path = directory / f"qemu{count}"
        server = start(need("qemu-nbd"), "-t", "-k", path, *words, await_uri=False)
        server.wait_for(path.exists, "qemu-nbd")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(path))
            assert client.recv(8) == b"NBDMAGIC"
        return server
    return qemu_nbd


def refused(*words):
    assert BUSY in run(servers.NBD, *words, status=1).stderr


class TestLocks:
    @pytest.mark.parametrize("read_only", [False, True])
    def test_are_those_of_qemu_nbd(self, serve, qemu_nbd, directory, image, read_only):
        overlay = create(directory / "top.qcow2", 8 * MIB, backing=image)
        data_file(directory)
        files = [overlay, image, directory / "image.qcow2", directory / "image.data"]
        held = []
        for program in "theirs", "ours":
            found = []
            for name in overlay, directory / "image.qcow2":
                if program == "theirs":
                    server = qemu_nbd("-f", "qcow2", *(["-r"] if read_only else []), name)
                else:
                    server = serve(name, read_only=read_only, extra=["-f", "qcow2"])
                found.append([locked(file) for file in files])
                server.kill() if program == "theirs" else server.stop()
            held.append(found)
        # Our writers let nobody else write to a data file either.
        if not read_only:
            held[0][1][3] = sorted([*held[0][1][3], 201])
        assert held[1] == held[0]

    def test_of_two_exports_of_one_image(self, image):
        for second in "", ",readonly=on":
            refused("serve", "-k", "/nonexistent/s", "--export", f"name=a,file={image},format=qcow2",
                    "--export", f"name=b,file={image},format=qcow2{second}")
        refused("serve", "-k", "/nonexistent/s", "--blockdev", f"driver=qcow2,node-name=a,file.filename={image}",
                "--blockdev", f"driver=qcow2,node-name=b,read-only=on,file.filename={image}",
                "--export", "name=a,node=a", "--export", "name=b,node=b,readonly=on")

    def test_two_readers_of_one_image(self, serve, image):
        serve(extra=["--export", f"name=a,file={image},format=qcow2,readonly=on", "--export", f"name=b,file={image},format=qcow2,readonly=on"])
        serve(image, read_only=True, extra=["-f", "qcow2"])
        run(servers.NBD, "image", "check", image)

    @pytest.mark.parametrize("who", ["ours", "theirs"])
    def test_keep_writers_off_what_is_read(self, serve, qemu_nbd, directory, image, who):
        run(servers.NBD, "image", "snapshot", "create", image, "s")
        if who == "ours":
            serve(image, read_only=True, extra=["-f", "qcow2"])
        else:
            qemu_nbd("-r", "-f", "qcow2", image)
        refused("image", "snapshot", "apply", image, "s")
        refused("image", "snapshot", "delete", image, "s")
        refused("image", "resize", image, "16M")
        refused("image", "check", "-r", "all", image)
        refused("image", "bitmap", "--add", image, "b")
        refused("image", "create", "-f", "qcow2", image, "1M")
        refused("serve", "-k", directory / "s", "-f", "qcow2", image)
        run(servers.NBD, "image", "check", image)

    def test_keep_writers_off_what_lies_below(self, serve, directory, image):
        serve(create(directory / "top.qcow2", 8 * MIB, backing=image), extra=["-f", "qcow2"])
        refused("image", "resize", "--shrink", image, "1M")
        refused("image", "check", "-r", "all", image)
        refused("image", "snapshot", "create", image, "q")
        refused("serve", "-k", directory / "s", "-f", "qcow2", image)
        run(servers.NBD, "image", "create", "-f", "qcow2", "-b", image, "-F", "qcow2", directory / "another.qcow2")

    def test_keep_readers_off_what_is_written_unless_they_insist(self, serve, directory, image):
        serve(image, extra=["-f", "qcow2"])
        for words in ["check", image], ["info", image], ["map", image], ["convert", "-O", "raw", image, directory / "copy.raw"]:
            refused("image", *words)
        refused("serve", "-k", directory / "s", "-r", "-f", "qcow2", image)
        refused("serve", "-k", directory / "s", "-s", "-f", "qcow2", image)
        for words in ["check", "-U", image], ["info", "-U", image]:
            run(servers.NBD, "image", *words)

    @pytest.mark.parametrize("who", ["ours", "theirs"])
    def test_keep_the_size_of_a_raw_file_that_is_read(self, serve, qemu_nbd, disk, who):
        if who == "ours":
            serve(disk, read_only=True)
        else:
            qemu_nbd("-r", "-f", "raw", disk)
        size = os.path.getsize(disk)
        refused("image", "resize", "-f", "raw", "--shrink", disk, "64k")
        refused("image", "create", "-f", "raw", disk, "1M")
        assert os.path.getsize(disk) == size
        serve(disk, extra=["-f", "raw"])
