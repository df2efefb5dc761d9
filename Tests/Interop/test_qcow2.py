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
from qcow2_images import KINDS, chain, create, data_file, scattered, snapshots, write

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
        """`fmt`: None for an image that is described by --image-opts."""
        nonlocal count
        count += 1
        path = directory / f"reference{count}"
        how = ["-f", fmt] if fmt else ["--image-opts"]
        running.append(start(need("qemu-nbd"), "-r", "-t", *how, "-A", "-k", path, *options, image, await_uri=False))
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

    @pytest.mark.parametrize("options", [[], ["extended_l2=on"]])
    def test_what_is_zeroed_in_a_raw_data_file_is_told_as_qemu_tells_it(self, serve, directory, qemu_nbd, options):
        commands = ["write -P 1 0 8M", "discard 0 4M", "write -z -u 4M 2M", "write -P 2 1M 64k", "write -z 7M 128k"]
        words = [word for command in commands for word in ("-c", command)]
        found = []
        for who in "ours", "theirs":
            image, data = directory / f"{who}.qcow2", directory / f"{who}.data"
            create(image, 10 * MIB, f"data_file={data}", "data_file_raw=on", *options)
            if who == "ours":
                server = serve(image, extra=["-f", "qcow2"])
                run(need("qemu-io"), "-f", "raw", *words, server.uri)
                server.stop()
            else:
                run(need("qemu-io"), "-d", "unmap", "-f", "qcow2", *words, image)
            check(image)
            told = extents(qemu_nbd(image), "base:allocation")
            qemu_nbd.stop()
            assert extents(serve(image, read_only=True, extra=["-f", "qcow2"]).uri, "base:allocation") == told
            found.append((told, data.read_bytes()))
        assert found[0] == found[1]

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


def layers(directory):
    """An image on two others, and what may be said of it and of what lies below: the same words for QEMU and for us."""
    image = chain(directory, 3)
    data_file(directory)
    (directory / "copy.data").write_bytes((directory / "image.data").read_bytes()[::-1])

    def file(name, place="file"):
        return f"{place}.driver=file,{place}.filename={directory / name}"
    return {
        "as the image says": f"driver=qcow2,{file(image.name)}",
        "another image below": f"driver=qcow2,{file(image.name)},backing.driver=qcow2,{file('layer0.qcow2', 'backing.file')}",
        "a raw file below": f"driver=qcow2,{file(image.name)},backing.driver=raw,{file('base.raw', 'backing.file')}",
        "a part of it below": f"driver=qcow2,{file(image.name)},backing.driver=raw,backing.offset=1M,{file('base.raw', 'backing.file')}",
        "three described": f"driver=qcow2,{file(image.name)},backing.driver=qcow2,{file('layer1.qcow2', 'backing.file')},"
                           f"backing.backing.driver=qcow2,{file('layer0.qcow2', 'backing.backing.file')}",
        "nothing below": f"driver=qcow2,{file(image.name)},backing=",
        "nothing below the next": f"driver=qcow2,{file(image.name)},backing.driver=qcow2,{file('layer1.qcow2', 'backing.file')},backing.backing=",
        "its data file": f"driver=qcow2,{file('image.qcow2')}",
        "another data file": f"driver=qcow2,{file('image.qcow2')},{file('copy.data', 'data-file')}",
    }


KINDS_OF_LAYERS = ["as the image says", "another image below", "a raw file below", "a part of it below", "three described",
                   "nothing below", "nothing below the next", "its data file", "another data file"]


class TestNodes:
    @pytest.mark.parametrize("way", ["--image-opts", "--blockdev"])
    @pytest.mark.parametrize("kind", KINDS_OF_LAYERS)
    def test_what_is_described_is_what_qemu_nbd_serves(self, serve, directory, qemu_nbd, kind, way):
        # S-BST-07, S-BST-08
        options = layers(directory)[kind]
        theirs = qemu_nbd(options, fmt=None)
        if way == "--image-opts":
            ours = serve(options, read_only=True, extra=["--image-opts", "-A"]).uri
        else:
            ours = serve(extra=["-r", "--blockdev", f"node-name=n,{options}", "--export", "name=,node=n,allocation-depth=on"]).uri
        compare(ours, theirs)
        for context in ("base:allocation", "qemu:allocation-depth"):
            assert extents(ours, context) == extents(theirs, context)

    def test_nodes_stand_on_nodes(self, serve, directory, connect, qemu_nbd):
        image = chain(directory, 2)
        model = directory / "model"
        run(need("qemu-img"), "convert", "-f", "qcow2", "-O", "raw", image, model)
        server = serve(extra=[
            "--blockdev", f"driver=file,node-name=file,filename={image}",
            "--blockdev", f"driver=qcow2,node-name=below,read-only=on,file.filename={directory / 'layer0.qcow2'}",
            "--blockdev", "driver=qcow2,node-name=top,detect-zeroes=unmap,discard=unmap,file=file,backing=below",
            "--export", "name=,node=top", "--export", "name=below,node=below"])
        compare(server.uri, model)
        TestWriting.hammer(server.uri, model, seed=random.randrange(1 << 30), steps=20)
        compare(server.uri, model)
        below = directory / "below"
        run(need("qemu-img"), "convert", "-U", "-f", "qcow2", "-O", "raw", directory / "layer0.qcow2", below)
        compare(servers.unix_uri(server.sockets[0], "below"), below)
        server.stop()
        check(image)
        compare(image, model, ("qcow2", "raw"))

    @pytest.mark.parametrize("keys, reason", [
        ("driver=qcow2,file.filename=IMAGE,backing=,l2-cache-size=1M", "has no key 'l2-cache-size'"),
        ("driver=qcow2,file.filename=IMAGE,backing=nobody", "no such node"),
        ("driver=qcow2,file.filename=IMAGE,backing.driver=vmdk,backing.file.filename=IMAGE", "no driver 'vmdk'"),
        ("driver=qcow2,file.filename=IMAGE", "does not lie beside the image; --allow-path"),
        ("driver=qcow2,file.driver=memory,file.size=1M", "not a qcow2 image"),
    ])
    def test_what_makes_no_sense_is_refused(self, directory, keys, reason):
        (directory / "elsewhere").mkdir()
        base = random_file(directory / "elsewhere" / "base.raw", MIB)
        image = directory / "image.qcow2"
        run(need("qemu-img"), "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", image)
        keys = keys.replace("IMAGE", str(image))
        done = run(servers.NBD, "serve", "-U", "-", "--blockdev", f"node-name=n,{keys}", "--export", "name=,node=n", status=1)
        assert reason in done.stderr
        done = run(servers.NBD, "serve", "-U", "-", "--image-opts", keys, status=1)
        assert reason in done.stderr

    def test_a_window_and_a_bare_file_show_what_the_image_holds(self, serve, directory):
        # Not compared with qemu-nbd 7.2: it says that the window is a hole, and cannot be given a bare file below.
        image = chain(directory, 2)
        model = directory / "model"
        run(need("qemu-img"), "convert", "-f", "qcow2", "-O", "raw", image, model)
        data = model.read_bytes()
        model.write_bytes(data[MIB:4 * MIB])
        window = f"driver=raw,node-name=n,offset=1M,size=3M,file.driver=qcow2,file.file.filename={image}"
        compare(serve(extra=["-r", "--blockdev", window, "--export", "name=,node=n"]).uri, model)
        raw = f"driver=qcow2,file.filename={image},backing.driver=raw,backing.file.filename={directory / 'base.raw'}"
        bare = f"driver=qcow2,file.filename={image},backing.driver=file,backing.filename={directory / 'base.raw'}"
        compare(serve(bare, read_only=True, extra=["--image-opts"]).uri, serve(raw, read_only=True, extra=["--image-opts"]).uri)

    def test_a_snapshot_and_an_overlay_of_what_is_described(self, serve, directory, connect, qemu_nbd):
        image = snapshots(directory)
        options = f"driver=qcow2,file.driver=file,file.filename={image}"
        compare(serve(options, extra=["--image-opts", "-l", "first"]).uri, qemu_nbd(options, "-l", "first", fmt=None))
        before = image.read_bytes()
        server = serve(options, extra=["--image-opts", "-s"])
        connect(server.uri).pwrite(b"gone", 1000)
        server.stop()
        assert image.read_bytes() == before


class TestBitmaps:
    @pytest.mark.parametrize("extra", [[], ["--detect-zeroes", "on"], ["--detect-zeroes", "unmap"], ["-s"], ["-r"]], ids=" ".join)
    def test_bitmaps_are_found_down_the_chain_and_through_filters(self, serve, directory, connect, qemu_nbd, extra):
        # S-EXP-11
        base = create(directory / "base.qcow2", 10 * MIB)
        self.add(base, "lowest", "both")
        write(base, "write 1M 100k", "write 5M 1")
        middle = create(directory / "middle.qcow2", 10 * MIB, backing=base)
        top = create(directory / "top.qcow2", 10 * MIB, backing=middle)
        self.add(top, "highest", "both")
        write(top, "write 3M 64k")
        names = ["highest", "lowest", "both"]
        words = [word for name in names for word in ("-B", name)]
        theirs = qemu_nbd(top, *words)
        expected = {name: extents(theirs, f"qemu:dirty-bitmap:{name}") for name in names}
        assert len(expected["lowest"]) == 5 and expected["both"] == expected["highest"]
        qemu_nbd.stop()
        server = serve(top, extra=["-f", "qcow2", *words, *extra])
        assert {name: extents(server.uri, f"qemu:dirty-bitmap:{name}") for name in names} == expected
        if extra == ["-r"]:
            return
        # What is written, zeroes too, is recorded where it is stored, and nowhere else.
        connect(server.uri).pwrite(bytes(65536), 8 * MIB)
        after = {name: extents(server.uri, f"qemu:dirty-bitmap:{name}") for name in names}
        assert after["lowest"] == expected["lowest"]
        assert ([64 * KIB, 1] in after["highest"][3:]) == (extra != ["-s"])
        server.stop()
        assert self.dirty(top, "highest", qemu_nbd) == after["highest"]
        check(top)

    def test_bitmaps_below_are_found_by_exports_of_nodes(self, serve, directory, qemu_nbd):
        base = create(directory / "base.qcow2", 10 * MIB)
        self.add(base, "lowest")
        write(base, "write 1M 100k")
        top = create(directory / "top.qcow2", 10 * MIB, backing=base)
        options = f"driver=raw,offset=1M,size=5M,file.driver=qcow2,file.file.driver=file,file.file.filename={top}"
        theirs = qemu_nbd(f"driver=qcow2,file.driver=file,file.filename={top}", "-B", "lowest", fmt=None)
        expected = extents(theirs, "qemu:dirty-bitmap:lowest")
        assert expected == [[MIB, 0], [128 * KIB, 1], [9 * MIB - 128 * KIB, 0]]
        server = serve(extra=["-r", "--blockdev", f"node-name=n,{options}", "--export", "name=,node=n,bitmap=lowest"])
        assert extents(server.uri, "qemu:dirty-bitmap:lowest") == [[128 * KIB, 1], [5 * MIB - 128 * KIB, 0]]
        done = run(servers.NBD, "serve", "-U", "-", "-r", "-f", "qcow2", "-B", "higher", top, status=1)
        assert "higher" in done.stderr and "not found" in done.stderr

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
        handle = connect(server.uri)
        handle.pwrite(b"x", 0)
        server.process.kill()
        server.process.wait()
        flags = json.loads(out(need("qemu-img"), "info", "--output=json", image))["format-specific"]["data"]["bitmaps"]
        assert "in-use" in flags[0]["flags"]
        check(image, leaks=True)

    def test_bitmaps_are_right_in_the_image_once_the_last_client_has_left(self, serve, directory, connect, qemu_nbd):
        image = create(directory / "image.qcow2", 10 * MIB)
        self.add(image, "one")

        def is_in_use():
            flags = json.loads(out(need("qemu-img"), "info", "-U", "--output=json", image))["format-specific"]["data"]["bitmaps"]
            return "in-use" in flags[0]["flags"]

        server = serve(image, check=False, extra=["-f", "qcow2"])
        assert not is_in_use()
        first, second = connect(server.uri), connect(server.uri)
        first.pwrite(b"x" * 65536, 1 * MIB)
        first.shutdown()
        assert is_in_use()
        second.pwrite(b"y", 5 * MIB)
        second.shutdown()
        server.wait_for(lambda: not is_in_use(), "the bitmap is stored")
        # And again, by a client that comes later.
        third = connect(server.uri)
        third.pwrite(b"x", 7 * MIB)
        assert is_in_use()
        third.shutdown()
        server.wait_for(lambda: not is_in_use(), "the bitmap is stored")
        # What the one before took is free again a moment later; killed in between, the server would leak it.
        qemu_img = need("qemu-img")
        server.wait_for(
            lambda: subprocess.run([qemu_img, "check", "-U", image], capture_output=True, check=False).returncode == 0, "nothing is leaked")
        server.process.kill()
        server.process.wait()
        check(image)
        assert self.dirty(image, "one", qemu_nbd) == [
            [MIB, 0], [64 * KIB, 1], [4 * MIB - 64 * KIB, 0], [64 * KIB, 1], [2 * MIB - 64 * KIB, 0], [64 * KIB, 1], [3 * MIB - 64 * KIB, 0]]
