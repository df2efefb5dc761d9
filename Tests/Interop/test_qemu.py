"""QEMU's tools as clients: qemu-img and qemu-io over nbd URIs."""

import json

import pytest

from images import KIB, MIB, allocated, checkered, noise, random_file, sha256, sparse
from peers import need, out, run


@pytest.fixture
def qemu_img():
    return need("qemu-img")


@pytest.fixture
def qemu_io():
    program = need("qemu-io")

    def qemu_io(uri, *commands, status=0, flags=()):
        words = [word for command in commands for word in ("-c", command)]
        done = run(program, "-f", "raw", *flags, *words, uri, status=status)
        assert "failed" not in done.stdout.lower() or status, done.stdout
        return done.stdout
    return qemu_io


class TestQemuImg:
    def test_info(self, serve, disk, qemu_img):
        info = json.loads(out(qemu_img, "info", "--output=json", "-f", "raw", serve(disk).uri))
        assert info["virtual-size"] == 64 * MIB

    @pytest.mark.parametrize("make", [
        lambda path: random_file(path, 16 * MIB), lambda path: checkered(path, 16 * MIB, 256 * KIB),
        lambda path: sparse(path, 16 * MIB)], ids=["random", "checkered", "hole"])
    def test_convert_in_and_out(self, serve, directory, qemu_img, make):
        image, target = make(directory / "image"), sparse(directory / "target", 16 * MIB)
        server = serve(target)
        run(qemu_img, "convert", "-n", "-f", "raw", "-O", "raw", image, server.uri)
        run(qemu_img, "compare", "-f", "raw", "-F", "raw", image, server.uri)
        run(qemu_img, "convert", "-f", "raw", "-O", "raw", server.uri, directory / "copy")
        server.stop()
        assert sha256(image) == sha256(target) == sha256(directory / "copy")
        # S-CMD-06, S-CMD-14: holes survive both ways
        assert allocated(target) <= allocated(image) + 256 * KIB
        assert allocated(directory / "copy") <= allocated(image) + 256 * KIB

    def test_convert_out_of_order_with_many_coroutines(self, serve, directory, qemu_img):
        image, target = random_file(directory / "image", 16 * MIB), sparse(directory / "target", 16 * MIB)
        server = serve(target)
        run(qemu_img, "convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", image, server.uri)
        server.stop()
        assert sha256(target) == sha256(image)

    def test_convert_zeroes_the_target_fast(self, serve, directory, qemu_img):
        # P-CMD-ZERO-2: qemu-img asks with FAST_ZERO first and copes with either answer
        image, target = checkered(directory / "image", 16 * MIB, MIB), random_file(directory / "target", 16 * MIB)
        server = serve(target)
        run(qemu_img, "convert", "-n", "-S", "4k", "-f", "raw", "-O", "raw", image, server.uri)
        server.stop()
        assert sha256(target) == sha256(image)

    def test_a_qcow2_image_lives_on_an_export(self, serve, disk, directory, qemu_img):
        # A format above NBD writes small, unaligned and often.
        image = random_file(directory / "image", 8 * MIB)
        server = serve(disk)
        run(qemu_img, "create", "-f", "qcow2", server.uri, "32M")
        run(qemu_img, "convert", "-n", "-f", "raw", "-O", "qcow2", image, server.uri)
        run(qemu_img, "check", "-f", "qcow2", server.uri)
        run(qemu_img, "convert", "-f", "qcow2", "-O", "raw", server.uri, directory / "copy")
        assert (directory / "copy").read_bytes()[:8 * MIB] == image.read_bytes()

    def test_map(self, serve, directory, qemu_img):
        # S-BST-07
        image = sparse(directory / "image", 8 * MIB, [(0, noise(MIB)), (4 * MIB, noise(MIB))])
        entries = json.loads(out(qemu_img, "map", "--output=json", "-f", "raw", serve(image).uri))
        assert [(e["start"], e["length"], e["data"], e["zero"]) for e in entries] == [
            (0, MIB, True, False), (MIB, 3 * MIB, False, True),
            (4 * MIB, MIB, True, False), (5 * MIB, 3 * MIB, False, True)]

    def test_compare_finds_one_byte(self, serve, directory, qemu_img):
        image = random_file(directory / "image", 4 * MIB)
        copy = random_file(directory / "copy", 4 * MIB)
        with open(copy, "r+b") as file:
            file.seek(3_000_000)
            byte = file.read(1)[0]
            file.seek(3_000_000)
            file.write(bytes([byte ^ 1]))
        done = run(qemu_img, "compare", "-f", "raw", "-F", "raw", serve(image).uri, serve(copy).uri, status=1)
        assert "Content mismatch" in done.stdout

    def test_bench_writes_and_flushes(self, serve, disk, qemu_img):
        uri = serve(disk).uri
        run(qemu_img, "bench", "-f", "raw", "-w", "-c", "2000", "-d", "32", "-s", "4k", "--flush-interval=100", uri)
        run(qemu_img, "bench", "-f", "raw", "-c", "2000", "-d", "64", "-s", "64k", uri)


class TestQemuIO:
    def test_patterns(self, serve, disk, qemu_io):
        server = serve(disk)
        qemu_io(server.uri, "write -P 0xaa 0 64k", "write -P 0xbb 64k 1M", "read -P 0xaa 0 64k", "read -P 0xbb 64k 1M",
                "read -P 0 1088k 64k", "flush")
        server.stop()
        data = disk.read_bytes()
        assert data[:64 * KIB] == b"\xaa" * 64 * KIB and data[64 * KIB:1088 * KIB] == b"\xbb" * MIB

    def test_unaligned(self, serve, disk, qemu_io):
        qemu_io(serve(disk).uri, "write -P 0x11 0 8k", "write -P 0x22 513 700", "read -P 0x11 0 513",
                "read -P 0x22 513 700", "read -P 0x11 1213 6979")

    def test_zeroes(self, serve, disk, qemu_io):
        qemu_io(serve(disk).uri, "write -P 0xcc 0 1M", "write -z 64k 128k", "write -z -u 512k 128k", "write -z -f 900k 4k",
                "read -P 0xcc 0 64k", "read -P 0 64k 128k", "read -P 0 512k 128k", "read -P 0 900k 4k",
                "read -P 0xcc 640k 64k")

    def test_fua(self, serve, disk, qemu_io):
        qemu_io(serve(disk).uri, "write -f -P 0x33 4k 4k", "read -P 0x33 4k 4k")

    def test_discard(self, serve, directory, qemu_io):
        image = random_file(directory / "image", 4 * MIB)
        qemu_io(serve(image).uri, "discard 1M 2M", flags=["-d", "unmap"])
        assert allocated(image) <= 2 * MIB + 64 * KIB

    def test_asynchronous_writes_that_interleave(self, serve, disk, qemu_io):
        commands = [f"aio_write -P {n} {n * 64}k 64k" for n in range(1, 40)]
        checks = [f"read -P {n} {n * 64}k 64k" for n in range(1, 40)]
        qemu_io(serve(disk).uri, *commands, "aio_flush", *checks)

    def test_a_read_only_export_refuses_a_writer(self, serve, disk, qemu_io):
        # P-FLG-02
        server = serve(disk, read_only=True)
        assert "0" in qemu_io(server.uri, "read -P 0 0 64k", flags=["-r"])
        run(need("qemu-io"), "-f", "raw", "-c", "write 0 4k", server.uri, status=1)

    def test_a_size_that_is_no_multiple_of_512(self, serve, directory, qemu_io):
        # S-BUG-13
        image = sparse(directory / "odd", 1000, [(0, b"\x55" * 1000)])
        qemu_io(serve(image).uri, "read -P 0x55 0 1000")
        assert image.stat().st_size == 1000
