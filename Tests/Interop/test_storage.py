"""What happens below: files that shrink, disks that are full, holes of real file systems, block devices."""

import contextlib
import json
import os
import pathlib
import resource
import subprocess
import threading

import pytest

import wire
from images import KIB, MIB, noise, random_file, sparse
from peers import need, out, run
from wire import EIO, ENOSPC, Wire


@pytest.fixture
def small_tmpfs(directory):
    """A file system of 8 MiB."""
    path = directory / "small"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "nbd-test", path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def loop(directory):
    """A block device of 16 MiB."""
    losetup = need("losetup")
    backing = random_file(directory / "backing", 16 * MIB)
    done = subprocess.run([losetup, "--find", "--show", backing], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    device = done.stdout.strip()
    yield pathlib.Path(device), backing
    subprocess.run([losetup, "--detach", device], check=True)


class TestShrunkFiles:
    """A file that somebody truncates under the server: EIO, never zeroes that nobody wrote, never a crash."""

    def image(self, directory):
        return random_file(directory / "image", 8 * MIB)

    @pytest.mark.parametrize("structured", [False, True])
    @pytest.mark.parametrize("left", [0, 4 * MIB, 4 * MIB + 100])
    def test_reads_beyond_the_new_end(self, serve, directory, structured, left):
        # S-ERR-03, S-BUG-03, S-CMD-08, S-CMD-09
        image = self.image(directory)
        server = serve(image, read_only=True, stderr=None)
        with Wire(server.uri) as link:
            link.go(structured=structured)
            assert (link.call(wire.READ, 6 * MIB, MIB) if structured else link.read(6 * MIB, MIB)[0]) == 0
            os.truncate(image, left)
            # What was in memory is sent from there: if it is gone, so is the connection, for its reply has begun (decision 0013).
            with contextlib.suppress(wire.Closed):
                assert link.call(wire.READ, 6 * MIB, 8192) == EIO
        with Wire(server.uri) as link:
            link.go(structured=structured)
            for offset in (6 * MIB, left, left - 4096 if left else 0):
                assert link.call(wire.READ, offset, 8192) == EIO
            if left:
                # what is still there is still read
                assert (link.call(wire.READ, 0, 4096) if structured else link.read(0, 4096)[0]) == 0

    def test_long_warm_reads_while_it_shrinks_and_grows(self, serve, directory):
        # Memory mappings would be SIGBUS here.
        image = self.image(directory)
        server = serve(image, read_only=True, stderr=None)
        stop = threading.Event()

        def shake():
            while not stop.is_set():
                os.truncate(image, 0)
                os.truncate(image, 8 * MIB)

        shaker = threading.Thread(target=shake)
        shaker.start()
        try:
            for structured in (False, True):
                for count in (4 * MIB, 64 * KIB):
                    link = None
                    for _ in range(150):
                        if link is None:
                            link = Wire(server.uri)
                            link.go(structured=structured)
                        try:
                            answer = link.call(wire.READ, 0, count) if structured else link.read(0, count)[0]
                            assert answer in (0, EIO)
                        except wire.Closed:
                            # Short ones are sent from memory: see above.
                            assert count < MIB
                            link.link.close()
                            link = None
                    if link:
                        link.link.close()
        finally:
            stop.set()
            shaker.join()

    def test_status_beyond_the_new_end(self, serve, directory):
        # S-BST-06, P-CMD-BST-7: an answer or an error, not a hang
        image = self.image(directory)
        with Wire(serve(image, read_only=True, stderr=None).uri) as link:
            link.go(structured=True, contexts=["base:allocation"])
            os.truncate(image, 0)
            assert link.call(wire.STATUS, 0, 8 * MIB) in (0, EIO)


class TestFullDisks:
    def test_enospc(self, serve, small_tmpfs):
        # S-ERR-05, P-ERR-02; the connection and what fits go on
        image = sparse(small_tmpfs / "image", 32 * MIB)
        with Wire(serve(image, stderr=None).uri) as link:
            link.go()
            errors = [link.call(wire.WRITE, n * MIB, MIB, data=noise(MIB, n)) for n in range(16)]
            assert errors[0] == 0 and errors[-1] == ENOSPC and set(errors) == {0, ENOSPC}
            assert link.read(0, MIB) == (0, noise(MIB, 0))
            assert link.call(wire.FLUSH) == 0
            # space that is given back can be used again
            assert link.call(wire.TRIM, 0, 4 * MIB) == 0
            assert link.call(wire.WRITE, 20 * MIB, MIB, data=noise(MIB)) == 0

    def test_enospc_by_fua_and_zeroes(self, serve, small_tmpfs):
        image = sparse(small_tmpfs / "image", 32 * MIB)
        with Wire(serve(image, stderr=None).uri) as link:
            link.go()
            assert link.call(wire.ZEROES, 0, 32 * MIB) == 0  # nothing to provide
            assert link.call(wire.ZEROES, 0, 32 * MIB, flags=wire.NO_HOLE) == ENOSPC
            assert link.call(wire.WRITE, 0, 4096, flags=wire.FUA, data=bytes(4096)) in (0, ENOSPC)

    def test_a_limit_on_the_size_of_files(self, serve, disk):
        # S-ERR-05: EFBIG is ENOSPC, and SIGXFSZ must not end the process
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB, 8 * MIB))

        with Wire(serve(disk, preexec=limit, stderr=None).uri) as link:
            link.go()
            assert link.call(wire.WRITE, 0, MIB, data=noise(MIB)) == 0
            assert link.call(wire.WRITE, 16 * MIB, MIB, data=noise(MIB)) == ENOSPC
            assert link.read(0, MIB) == (0, noise(MIB))


class TestHoles:
    def map(self, uri):
        return [(e["offset"], e["length"], e["type"]) for e in json.loads(out(need("nbdinfo"), "--json", "--map", uri))]

    def check(self, serve, image):
        # S-BST-07, S-BLK-12
        sparse(image, 4 * MIB, [(0, noise(64 * KIB)), (MIB, noise(128 * KIB)), (4 * MIB - 4 * KIB, noise(4 * KIB))])
        assert self.map(serve(image).uri) == [
            (0, 64 * KIB, 0), (64 * KIB, MIB - 64 * KIB, 3), (MIB, 128 * KIB, 0),
            (MIB + 128 * KIB, 3 * MIB - 132 * KIB, 3), (4 * MIB - 4 * KIB, 4 * KIB, 0)]

    def test_of_the_file_system_at_hand(self, serve, directory):
        self.check(serve, directory / "image")

    def test_of_tmpfs(self, serve, small_tmpfs):
        self.check(serve, small_tmpfs / "image")

    def test_appear_by_trim_and_vanish_by_write(self, serve, directory):
        image = random_file(directory / "image", 4 * MIB)
        server = serve(image)
        with Wire(server.uri) as link:
            link.go()
            assert link.call(wire.TRIM, MIB, MIB) == 0
            assert self.map(server.uri) == [(0, MIB, 0), (MIB, MIB, 3), (2 * MIB, 2 * MIB, 0)]
            assert link.call(wire.WRITE, MIB, 4096, data=noise(4096)) == 0
            assert link.call(wire.FLUSH) == 0
            assert self.map(server.uri)[:2] == [(0, MIB + 4096, 0), (MIB + 4096, MIB - 4096, 3)]

    def test_a_file_of_8192_holes(self, serve, directory):
        # S-BST-01, S-LIM-08: many extents in bounded replies
        image = directory / "image"
        with open(image, "wb") as file:
            file.truncate(64 * MIB)
            for at in range(0, 64 * MIB, 8 * KIB):
                os.pwrite(file.fileno(), b"x" * 4096, at)
            os.fsync(file.fileno())
        extents = self.map(serve(image).uri)
        assert len(extents) == 16_384 and sum(length for _, length, _ in extents) == 64 * MIB


class TestBlockDevices:
    def test_size_data_and_writes(self, serve, loop):
        device, backing = loop
        server = serve(device)
        with Wire(server.uri) as link:
            link.go()
            assert link.size == 16 * MIB
            assert link.read(MIB, 4096) == (0, backing.read_bytes()[MIB:][:4096])
            assert link.call(wire.WRITE, 5, 1000, flags=wire.FUA, data=noise(1000)) == 0
            assert link.read(5, 1000) == (0, noise(1000))
            assert link.call(wire.FLUSH) == 0
        server.stop()
        assert backing.read_bytes()[5:1005] == noise(1000)

    def test_zeroes_and_trims(self, serve, loop):
        device, backing = loop
        with Wire(serve(device).uri) as link:
            link.go()
            before = backing.read_bytes()
            assert link.call(wire.ZEROES, MIB + 7, MIB) == 0
            assert link.read(MIB, 2 * MIB) == (0, before[MIB:][:7] + bytes(MIB) + before[2 * MIB + 7:3 * MIB])
            assert link.call(wire.TRIM, 4 * MIB, MIB) == 0
            assert link.read(5 * MIB, 4096) == (0, before[5 * MIB:][:4096])
            error = link.call(wire.ZEROES, 6 * MIB, MIB, flags=wire.FAST_ZERO)
            assert error in (0, wire.ENOTSUP)
            assert link.read(6 * MIB, MIB) == (0, before[6 * MIB:][:MIB] if error else bytes(MIB))

    def test_read_only(self, serve, loop):
        device, _ = loop
        with Wire(serve(device, read_only=True).uri) as link:
            link.go()
            assert link.call(wire.WRITE, 0, 512, data=bytes(512)) == wire.EPERM


@pytest.mark.parametrize("cache", ["none", "writeback", "writethrough", "directsync", "unsafe"])
def test_every_cache_mode_serves_any_alignment(serve, disk, cache):
    # S-EXP-29, S-BLK-02, S-BLK-03, S-BLK-22
    server = serve(disk, extra=[f"--cache={cache}"])
    with Wire(server.uri) as link:
        link.go()
        reference = bytearray(MIB)
        for n, (offset, length) in enumerate([(0, 4096), (1, 1), (511, 2), (4095, 8194), (70_000, 123_457), (MIB - 1, 1)]):
            data = noise(length, n)
            assert link.call(wire.WRITE, offset, length, data=data) == 0
            reference[offset:offset + length] = data
        assert link.call(wire.ZEROES, 100_001, 5_003) == 0
        reference[100_001:105_004] = bytes(5_003)
        assert link.call(wire.FLUSH) == 0
        assert link.read(0, MIB) == (0, bytes(reference))
        assert link.read(513, 1025) == (0, bytes(reference[513:1538]))
    server.stop()
    assert disk.read_bytes()[:MIB] == reference


def test_a_file_that_looks_like_an_image_format(serve, directory):
    # Never probed: the bytes of the file are served. Without `--format=raw` a warning says so.
    image = directory / "image"
    run(need("qemu-img"), "create", "-f", "qcow2", image, "1M")
    size = image.stat().st_size
    for words, warning in ([], "qcow2"), (["--format=raw"], ""):
        server = serve(image, extra=words, check=False)
        assert out(need("nbdinfo"), "--size", server.uri) == f"{size}\n"
        server.stop(stderr=warning)
        assert (server.err != "") == (warning != "")
