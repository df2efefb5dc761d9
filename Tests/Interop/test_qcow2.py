"""qcow2 images: what we serve equals what qemu-nbd serves, and what we write passes qemu-img's check."""

import json
import os
import random
import socket
import subprocess
import threading
import time

import pytest

import server as servers
from images import KIB, MIB, random_file
from peers import need, need_libnbd, out, run
from qcow2_images import KINDS, chain, create, scattered, snapshots, write

kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


@pytest.fixture
def qemu_nbd(directory, start):
    """`qemu_nbd(image, …)`: what the reference serves, on a socket of its own."""
    count = 0
    running = []

    def stop():
        """They keep the image from being written."""
        for process in running:
            process.kill()
            process.process.wait()
        running.clear()

    def qemu_nbd(image, *options, fmt="qcow2"):
        nonlocal count
        count += 1
        path = directory / f"reference{count}"
        running.append(start(need("qemu-nbd"), "-r", "-t", "-f", fmt, "-A", "-k", path, *options, image, await_uri=False))
        for _ in range(200):
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(path))
                return servers.unix_uri(path)
            except OSError:
                time.sleep(0.05)
        raise AssertionError("qemu-nbd does not come up")
    qemu_nbd.stop = stop
    return qemu_nbd


def extents(uri, context):
    """The extents of the whole export, neighbours merged."""
    nbd = need_libnbd()
    handle = nbd.NBD()
    handle.add_meta_context(context)
    handle.connect_uri(uri)
    merged, at, size = [], 0, handle.get_size()

    def add(name, offset, entries, error):
        nonlocal at
        for length, flags in zip(entries[::2], entries[1::2]):
            length = min(length, size - at)
            if merged and merged[-1][1] == flags:
                merged[-1][0] += length
            else:
                merged.append([length, flags])
            at += length
    while at < size:
        handle.block_status(min(size - at, 1 << 30), at, add)
    handle.shutdown()
    return merged


def compare(first, second, formats=("raw", "raw")):
    run(need("qemu-img"), "compare", "-f", formats[0], "-F", formats[1], first, second)


def check(path, leaks=False):
    """No errors; with `leaks`, clusters may be lost."""
    done = subprocess.run([need("qemu-img"), "check", "-f", "qcow2", path], capture_output=True, text=True, check=False)
    assert done.returncode in ((0, 3) if leaks else (0,)), done.stdout + done.stderr


class TestReading:
    @kinds
    def test_content_and_extents_are_those_of_qemu_nbd(self, serve, directory, qemu_nbd, kind):
        # S-BST-07, S-BST-08
        image = kind(directory)
        ours, theirs = serve(image, read_only=True, extra=["-f", "qcow2", "-A"]).uri, qemu_nbd(image)
        compare(ours, theirs)
        for context in ("base:allocation", "qemu:allocation-depth"):
            assert extents(ours, context) == extents(theirs, context)

    @pytest.mark.parametrize("which", ["first", "2", "snapshot.name=second", "snapshot.id=1"])
    def test_an_internal_snapshot_is_served_read_only(self, serve, directory, qemu_nbd, which):
        image = snapshots(directory)
        server = serve(image, extra=["-f", "qcow2", "-l", which])
        compare(server.uri, qemu_nbd(image, "-l", which))
        assert json.loads(out(need("nbdinfo"), "--json", server.uri))["exports"][0]["is_read_only"]

    def test_a_sub_cluster_and_unaligned_reads(self, serve, directory, connect):
        image = scattered(directory / "image.qcow2", "cluster_size=4k", backing=random_file(directory / "base.raw", 6 * MIB))
        run(need("qemu-img"), "convert", "-O", "raw", image, directory / "model")
        model = (directory / "model").read_bytes()
        handle = connect(serve(image, read_only=True, extra=["-f", "qcow2"]).uri)
        generator = random.Random(5)
        for _ in range(300):
            offset = generator.randrange(len(model))
            count = min(generator.choice([1, 511, 4097, 70_000]), len(model) - offset)
            assert handle.pread(count, offset) == model[offset:offset + count]


class TestWriting:
    @kinds
    @pytest.mark.parametrize("path", ["on", "off"])
    def test_random_writes_pass_the_check_and_equal_a_model(self, serve, directory, kind, path):
        image = kind(directory)
        model = directory / "model"
        run(need("qemu-img"), "convert", "-f", "qcow2", "-O", "raw", image, model)
        server = serve(image, extra=["-f", "qcow2", "--fast-path", path])
        self.hammer(server.uri, model, seed=random.randrange(1 << 30))
        compare(server.uri, model)
        server.stop()
        check(image)
        compare(image, model, ("qcow2", "raw"))

    @staticmethod
    def hammer(uri, model, seed, clients=4, steps=60):
        """Clients with a quarter of the disk each, in pieces of 1000 bytes: their clusters are shared, their bytes are not."""
        nbd = need_libnbd()
        print(f"seed {seed}")
        size = os.path.getsize(model)
        piece = 10_000
        failures = []

        def client(number):
            try:
                generator = random.Random(seed + number)
                handle = nbd.NBD()
                handle.connect_uri(uri)
                with open(model, "r+b", buffering=0) as file:
                    for step in range(steps):
                        offset = (generator.randrange(size // piece // clients) * clients + number) * piece
                        offset += generator.choice([0, 1, 512, 4096])
                        count = min(generator.choice([1, 100, 512, 4096, 5000]), size - offset)
                        what = generator.randrange(10)
                        if what < 6:
                            data = bytes([generator.randrange(256)]) * count
                            handle.pwrite(data, offset, generator.choice([0, 0, 0, nbd.CMD_FLAG_FUA]))
                            os.pwrite(file.fileno(), data, offset)
                        elif what < 8:
                            handle.zero(count, offset, generator.choice([0, nbd.CMD_FLAG_NO_HOLE]))
                            os.pwrite(file.fileno(), bytes(count), offset)
                        elif what < 9:
                            handle.flush()
                        else:
                            handle.trim(count, offset)
                            os.pwrite(file.fileno(), handle.pread(count, offset), offset)
                handle.flush()
                handle.shutdown()
            except Exception as error:  # pylint: disable=broad-except
                failures.append(f"client {number}: {error}")
        threads = [threading.Thread(target=client, args=[number]) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures

    @kinds
    def test_the_image_passes_the_check_after_a_stop(self, serve, directory, kind):
        image = kind(directory)
        model = directory / "model"
        run(need("qemu-img"), "convert", "-f", "qcow2", "-O", "raw", image, model)
        server = serve(image, extra=["-f", "qcow2"])
        # Whole clusters, too: discarded, zeroed, written.
        nbd = need_libnbd()
        handle = nbd.NBD()
        handle.connect_uri(server.uri)
        size = handle.get_size()
        with open(model, "r+b", buffering=0) as file:
            for step in range(12):
                offset = step * 450_000 % (size - 300_000) // 512 * 512
                if step % 3 == 0:
                    handle.zero(300_000, offset)
                    data = bytes(300_000)
                elif step % 3 == 1:
                    data = bytes([step]) * 300_000
                    handle.pwrite(data, offset)
                else:
                    handle.trim(300_000, offset)
                    data = handle.pread(300_000, offset)
                os.pwrite(file.fileno(), data, offset)
        handle.shutdown()
        self.hammer(server.uri, model, seed=random.randrange(1 << 30), steps=20)
        server.stop()
        check(image)
        compare(image, model, ("qcow2", "raw"))

    def test_what_qemu_io_writes_through_us_it_reads_from_the_file(self, serve, directory):
        image = create(directory / "image.qcow2", 10 * MIB)
        server = serve(image, extra=["-f", "qcow2"])
        run(need("qemu-io"), "-f", "raw", "-c", "write -P 5 100k 3M", "-c", "write -z 1M 1M", "-c", "flush", server.uri)
        server.stop()
        check(image)
        done = out(need("qemu-io"), "-f", "qcow2", "-c", "read -P 5 100k 900k", "-c", "read -P 0 1M 1M", "-c", "read -P 5 2M 1M", image)
        assert "Pattern verification failed" not in done

    def test_flushed_data_survives_a_kill(self, serve, directory, connect):
        image = create(directory / "image.qcow2", 20 * MIB, "cluster_size=4k")
        server = serve(image, check=False, extra=["-f", "qcow2"])
        handle = connect(server.uri)
        for index in range(100):
            handle.pwrite(bytes([index + 1]) * 5000, index * 150_000)
        handle.flush()
        handle.pwrite(b"x" * 100_000, 16 * MIB)
        server.process.kill()
        server.process.wait()
        check(image, leaks=True)
        run(need("qemu-io"), "-f", "qcow2", *[
            word for index in range(100) for word in ("-c", f"read -P {index + 1} {index * 150_000} 5000")], image)


class TestFiles:
    def test_a_backing_file_elsewhere_needs_permission(self, serve, directory):
        (directory / "elsewhere").mkdir()
        base = random_file(directory / "elsewhere" / "base.raw", MIB)
        (directory / "images").mkdir()
        image = directory / "images" / "image.qcow2"
        run(need("qemu-img"), "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", image)
        done = run(servers.NBD, "serve", "-f", "qcow2", "-k", directory / "socket", image, status=1)
        assert "--allow-path" in done.stderr and "elsewhere" in done.stderr
        compare(serve(image, read_only=True, extra=["-f", "qcow2", "--allow-path", base.parent]).uri, base)
        # A symbolic link is where it leads to.
        os.symlink(base, directory / "images" / "link.raw")
        linked = directory / "images" / "linked.qcow2"
        run(need("qemu-img"), "create", "-q", "-f", "qcow2", "-b", "link.raw", "-F", "raw", linked, cwd=linked.parent)
        done = run(servers.NBD, "serve", "-f", "qcow2", "-k", directory / "socket", linked, status=1)
        assert "--allow-path" in done.stderr

    def test_a_format_that_nobody_says_is_not_guessed(self, serve, directory):
        base = random_file(directory / "base.raw", MIB)
        image = create(directory / "image.qcow2", MIB, backing=base)
        data = bytearray(image.read_bytes())
        at = data.index(bytes.fromhex("e2792aca"))
        data[at:at + 4] = bytes.fromhex("11111111")
        image.write_bytes(data)
        done = run(servers.NBD, "serve", "-f", "qcow2", "-k", directory / "socket", image, status=1)
        assert "--probe-backing" in done.stderr
        compare(serve(image, read_only=True, extra=["-f", "qcow2", "--probe-backing"]).uri, base)

    def test_a_chain_that_leads_back_is_refused(self, directory):
        first = create(directory / "first.qcow2", MIB)
        second = create(directory / "second.qcow2", MIB, backing=first)
        run(need("qemu-img"), "rebase", "-u", "-f", "qcow2", "-b", second.name, "-F", "qcow2", first, cwd=directory)
        done = run(servers.NBD, "serve", "-f", "qcow2", "-k", directory / "socket", second, status=1)
        assert "leads back" in done.stderr

    def test_writes_to_a_temporary_overlay_are_gone(self, serve, directory, connect):
        for fmt, image in (("raw", random_file(directory / "base.raw", MIB)), ("qcow2", scattered(directory / "image.qcow2"))):
            before = image.read_bytes()
            server = serve(image, extra=["-f", fmt, "-s"])
            handle = connect(server.uri)
            handle.pwrite(b"gone" * 1000, 1000)
            assert handle.pread(4000, 1000) == b"gone" * 1000
            handle.flush()
            server.stop()
            assert image.read_bytes() == before

    def test_image_options_name_backing_and_data_files(self, serve, directory, qemu_nbd):
        image = chain(directory, 2)
        options = f"driver=qcow2,file.driver=file,file.filename={image},backing.driver=qcow2,backing.file.filename={directory / 'layer0.qcow2'}"
        compare(serve(options, read_only=True, extra=["--image-opts"]).uri, qemu_nbd(image))

    def test_a_damaged_or_encrypted_image_is_refused_with_the_reason(self, directory):
        image = create(directory / "image.qcow2", MIB)
        for offset, value, word in ((72, 2, "damaged"), (72, 1 << 40, "bit 40"), (32, 1, "encrypted"), (4, 7, "version 7")):
            data = bytearray(image.read_bytes())
            width = 8 if offset == 72 else 4
            data[offset:offset + width] = value.to_bytes(width, "big")
            broken = directory / "broken.qcow2"
            broken.write_bytes(data)
            done = run(servers.NBD, "serve", "-f", "qcow2", "-k", directory / "socket", broken, status=1)
            assert word in done.stderr, done.stderr

    def test_lazy_refcounts_are_repaired_after_a_kill(self, serve, directory, connect):
        image = create(directory / "image.qcow2", 10 * MIB, "lazy_refcounts=on")
        server = serve(image, check=False, extra=["-f", "qcow2"])
        handle = connect(server.uri)
        handle.pwrite(b"y" * 200_000, 0)
        handle.flush()
        server.process.kill()
        server.process.wait()
        assert image.read_bytes()[79] & 1 == 1
        again = serve(image, extra=["-f", "qcow2"])
        assert connect(again.uri).pread(5, 0) == b"yyyyy"
        again.stop()
        assert image.read_bytes()[79] & 1 == 0
        check(image)


class TestBitmaps:
    def add(self, image, *names):
        for name in names:
            run(need("qemu-img"), "bitmap", "--add", image, name)

    def dirty(self, image, name, qemu_nbd):
        found = extents(qemu_nbd(image, "-B", name), f"qemu:dirty-bitmap:{name}")
        qemu_nbd.stop()
        return found

    def test_an_enabled_bitmap_records_what_is_written_through_us(self, serve, directory, connect, qemu_nbd):
        image = create(directory / "image.qcow2", 10 * MIB)
        self.add(image, "on", "off")
        run(need("qemu-img"), "bitmap", "--disable", image, "off")
        server = serve(image, extra=["-f", "qcow2"])
        handle = connect(server.uri)
        handle.pwrite(b"x" * 100_000, 1 * MIB)
        handle.pwrite(b"y" * 10, 1 * MIB)
        handle.zero(65536, 4 * MIB)
        handle.trim(65536, 6 * MIB)
        handle.flush()
        # While it is open the image says so.
        flags = json.loads(out(need("qemu-img"), "info", "-U", "--output=json", image))["format-specific"]["data"]["bitmaps"]
        assert all("in-use" in one["flags"] for one in flags)
        server.stop()
        check(image)
        assert self.dirty(image, "on", qemu_nbd) == [
            [MIB, 0], [128 * KIB, 1], [3 * MIB - 128 * KIB, 0], [64 * KIB, 1], [2 * MIB - 64 * KIB, 0], [64 * KIB, 1], [4 * MIB - 64 * KIB, 0]]
        assert self.dirty(image, "off", qemu_nbd) == [[10 * MIB, 0]]

    def test_bitmaps_keep_their_bits_and_are_inconsistent_after_a_kill(self, serve, directory, connect, qemu_nbd):
        image = create(directory / "image.qcow2", 10 * MIB)
        self.add(image, "one")
        write(image, "write 0 1M", "write 5M 64k")
        before = self.dirty(image, "one", qemu_nbd)
        server = serve(image, extra=["-f", "qcow2"])
        connect(server.uri).pread(10, 0)
        server.stop()
        assert self.dirty(image, "one", qemu_nbd) == before
        server = serve(image, check=False, extra=["-f", "qcow2"])
        connect(server.uri).pwrite(b"x", 0)
        server.process.kill()
        server.process.wait()
        flags = json.loads(out(need("qemu-img"), "info", "--output=json", image))["format-specific"]["data"]["bitmaps"]
        assert "in-use" in flags[0]["flags"]
        check(image, leaks=True)
