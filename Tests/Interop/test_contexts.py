"""Metadata contexts besides base:allocation: allocation depth and dirty bitmaps, in all the ways clients ask for them."""

import json
import struct

import pytest

import wire
from images import KIB, MIB
from peers import need, out, run
from server import NBD
from test_extended import PAYLOAD_LEN, STATUS_EXT, Extended
from wire import Wire

TRACK = "qemu:dirty-bitmap:t"
DEPTH = "qemu:allocation-depth"


def runs(extents):
    """[(length, flags), …] of a libnbd callback's [length, flags, …]."""
    return list(zip(extents[::2], extents[1::2]))


@pytest.fixture
def tracked(serve, disk):
    """A raw file of 64 MiB with a bitmap of 64 KiB and one of 4 KiB."""
    return serve(disk, extra=["--track", "t", "--track", "fine:4K", "-A"])


def test_writes_are_told_to_nbdinfo(tracked, connect):
    # S-BLK-23, S-BST-09, S-BST-10, S-META-17
    nbdinfo = need("nbdinfo")
    handle = connect(tracked.uri)
    handle.pwrite(b"x" * 512, 100 * KIB)  # the fast path
    handle.pwrite(b"x" * MIB, 8 * MIB)  # handed over
    handle.zero(64 * KIB, 16 * MIB)
    handle.trim(64 * KIB, 32 * MIB)
    handle.pread(4096, 48 * MIB)
    handle.flush()
    found = [(e["offset"], e["length"]) for e in json.loads(out(nbdinfo, "--json", f"--map={TRACK}", tracked.uri)) if e["type"] == 1]
    assert found == [(64 * KIB, 64 * KIB), (8 * MIB, MIB), (16 * MIB, 64 * KIB), (32 * MIB, 64 * KIB)]
    fine = json.loads(out(nbdinfo, "--json", "--map=qemu:dirty-bitmap:fine", tracked.uri))
    assert [(e["offset"], e["length"]) for e in fine if e["type"] == 1][0] == (100 * KIB, 4 * KIB)
    assert all(e["description"] == "dirty" for e in fine if e["type"] == 1)


def test_qemu_img_maps_a_bitmap(tracked, connect):
    # what QEMU's backup tools do
    connect(tracked.uri).pwrite(b"x" * 4096, MIB)
    options = f"driver=nbd,server.type=unix,server.path={tracked.sockets[0]},x-dirty-bitmap={TRACK}"
    found = json.loads(out(need("qemu-img"), "map", "--output=json", "--image-opts", options))
    # Dirty is shown as "no data" there.
    assert [(e["start"], e["length"]) for e in found if not e["data"]] == [(MIB, 64 * KIB)]


def test_allocation_depth_of_a_raw_image_is_one(tracked):
    # S-BST-08, S-BLK-13, S-META-15
    (extent,) = json.loads(out(need("nbdinfo"), "--json", f"--map={DEPTH}", tracked.uri))
    assert (extent["length"], extent["type"]) == (64 * MIB, 1)


def test_contexts_are_listed_in_order(tracked):
    # S-META-10, S-META-14, S-META-16, S-META-20
    names = json.loads(out(need("nbdinfo"), "--json", tracked.uri))["exports"][0]["contexts"]
    assert names == ["base:allocation", DEPTH, TRACK, "qemu:dirty-bitmap:fine"]


def test_nothing_is_offered_that_was_not_asked_for(serve, disk):
    # S-META-15, S-META-17
    with Wire(serve(disk).uri) as link:
        link.greet()
        assert link.ask(wire.STRUCTURED)[-1][0] == wire.ACK
        answers = link.ask(wire.SET_META, link.meta_data("", DEPTH, TRACK, "qemu:"))
        assert [kind for kind, _ in answers] == [wire.ACK]


def test_several_contexts_in_one_request(tracked, connect):
    # S-BST-13, S-META-19
    handle = connect(tracked.uri, contexts=[TRACK, "base:allocation", DEPTH, TRACK])
    handle.pwrite(b"x" * 4096, 0)
    found = {}
    handle.block_status(MIB, 0, lambda name, offset, extents, error: found.update({name: runs(extents)}) or 0)
    assert list(found) == ["base:allocation", DEPTH, TRACK]
    assert found[TRACK] == [(64 * KIB, 1), (MIB - 64 * KIB, 0)]
    assert found[DEPTH] == [(MIB, 1)]
    assert sum(length for length, _ in found["base:allocation"]) == MIB


def test_a_bitmap_is_asked_for_ranges_of_any_alignment(tracked, connect):
    # S-BST-05, S-BST-10, S-CMD-26
    handle = connect(tracked.uri, contexts=[TRACK])
    handle.pwrite(b"x", 64 * KIB)
    found = []
    handle.block_status(100 * KIB, 30 * KIB + 7, lambda name, offset, extents, error: found.extend(runs(extents)) or 0)
    assert found == [(34 * KIB - 7, 0), (64 * KIB, 1), (2 * KIB + 7, 0)]


def test_extended_headers_with_all_contexts_and_some(tracked):
    # P-EXT-11, P-EXT-14, P-REP-05
    with Extended(tracked.uri) as link:
        link.negotiate("base:allocation", DEPTH, TRACK)
        assert link.write(65536, b"x" * 512) == 0
        assert link.call(wire.STATUS, 0, 64 * MIB) == 0
        assert [kind for kind, _ in link.chunks] == [STATUS_EXT] * 3
        ids = [struct.unpack(">II", payload[:8]) for _, payload in link.chunks]
        assert [number for number, _ in ids] == link.ids
        assert extents(link.chunks[2]) == [(64 * KIB, 0), (64 * KIB, 1), (64 * MIB - 128 * KIB, 0)]
        assert extents(link.chunks[1]) == [(64 * MIB, 1)]
        # A payload that names one of them.
        payload = struct.pack(">QI", 64 * MIB, link.ids[2])
        assert link.call(wire.STATUS, 0, len(payload), PAYLOAD_LEN, data=payload) == 0
        (chunk,) = link.chunks
        assert struct.unpack(">I", chunk[1][:4])[0] == link.ids[2] and extents(chunk)[1] == (64 * KIB, 1)


def extents(chunk):
    values = struct.unpack(f">{(len(chunk[1]) - 8) // 8}Q", chunk[1][8:])
    return list(zip(values[::2], values[1::2]))


def test_more_than_4_gib_at_once(serve):
    # P-EXT-11: the lengths of a bitmap's extents have 64 bits
    with Extended(serve("memory:64T", extra=["--track", "t:1M"]).uri) as link:
        link.negotiate(TRACK)
        assert link.write(1 << 45, b"x") == 0
        assert link.call(wire.STATUS, 0, 1 << 46) == 0
        assert extents(link.chunks[0]) == [(1 << 45, 0), (MIB, 1), ((1 << 45) - MIB, 0)]


def test_the_longest_status_and_one_byte_more(serve):
    # S-CVE-23: 2^32 - 1 bytes is what a compact header can ask for
    longest = (1 << 32) - 1
    with Wire(serve("memory:4G").uri) as link:
        link.go(structured=True, contexts=["base:allocation"])
        for offset in (0, 1):
            link.request(wire.STATUS, offset, longest)
            error, _, ((_, payload),) = link.answer()
            lengths = struct.unpack(f">{(len(payload) - 4) // 4}I", payload[4:])[::2]
            assert error == 0 and sum(lengths) == longest and 0 not in lengths
        assert link.call(wire.STATUS, 2, longest) == wire.EINVAL
        assert link.call(wire.STATUS, longest, 1) == 0
        assert link.call(wire.STATUS, longest, 2) == wire.EINVAL


@pytest.mark.parametrize("keys", ["offset=1M,size=4M", "offset=1M"])
def test_a_window_is_tracked_by_its_own_offsets(serve, disk, connect, keys):
    server = serve(extra=["--export", f"name=w,file={disk},{keys},track=t"])
    handle = connect(server.uri, contexts=[TRACK])
    handle.pwrite(b"x", 0)
    found = []
    handle.block_status(MIB, 0, lambda name, offset, extents, error: found.extend(runs(extents)) or 0)
    assert found == [(64 * KIB, 1), (MIB - 64 * KIB, 0)]


def test_two_exports_share_a_node(serve, disk, connect):
    # S-EXP-18
    server = serve(extra=[
        "--blockdev", f"driver=raw,node-name=n,file.driver=file,file.filename={disk}", "--export", "name=a,node=n,track=t",
        "--export", "name=b,node=n,readonly=on"])
    handle = connect(f"nbd+unix:///a?socket={server.sockets[0]}", contexts=[TRACK])
    handle.pwrite(b"hello", 4096)
    handle.flush()
    assert connect(f"nbd+unix:///b?socket={server.sockets[0]}").pread(5, 4096) == b"hello"


@pytest.mark.parametrize("extra, reason", [
    (["-B", "none"], "none"),  # S-EXP-11
    (["-B", "t", "--track", "t"], "given twice"),  # S-EXP-16
    (["-r", "--track", "t"], "read-only"),
    (["--track", "t:3K"], "power of two"),
])
def test_what_cannot_be_shown_is_refused(disk, extra, reason):
    done = run(NBD, "serve", "-U", "-", *extra, disk, status=1 if extra == ["-B", "none"] else 64)
    assert reason in done.stderr


@pytest.mark.parametrize("node, reason", [
    ("driver=tape,node-name=n", "no driver 'tape'"), ("driver=memory,size=1M,node-name=n,speed=9", "no key 'speed'"),
    ("driver=raw,file=m,node-name=n", "no such node"), ("driver=file,filename=/nowhere/at/all,node-name=n", "/nowhere/at/all"),
    ("driver=memory,size=1M,node-name=other", "no node 'n'"), ("driver=file,filename=x,node-name=n,aio=soon", "aio"),
])
def test_nodes_that_cannot_be_opened_are_refused(node, reason):
    done = run(NBD, "serve", "-U", "-", "--blockdev", node, "--export", "name=a,node=n", status=1)
    assert reason in done.stderr


def test_a_configuration_file_has_the_same_keys(serve, directory, disk, connect):
    path = directory / "c.toml"
    path.write_text(f'[[exports]]\nname = "d"\nfile = "{disk}"\nallocation-depth = true\ntrack = ["t:4K", "u"]\n')
    server = serve(extra=["--config", path])
    handle = connect(server.uri, contexts=[DEPTH, TRACK, "qemu:dirty-bitmap:u"])
    handle.pwrite(b"x", 0)
    found = {}
    handle.block_status(MIB, 0, lambda name, offset, extents, error: found.update({name: runs(extents)}) or 0)
    assert found[TRACK] == [(4 * KIB, 1), (MIB - 4 * KIB, 0)]
    assert found["qemu:dirty-bitmap:u"][0] == (64 * KIB, 1)


def test_an_incremental_backup_with_nbdcopy_and_fio(serve, disk, connect, directory):
    """What is dirty is everything that differs: copies of the dirty blocks alone make the backup equal."""
    need("fio")
    server = serve(disk, extra=["--track", "t:4K"])
    handle = connect(server.uri, contexts=[TRACK])
    backup = bytearray(64 * MIB)
    run("fio", "--name=w", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=1", "--size=64M",
        "--io_size=4M", "--iodepth=16", "--randseed=7", limit=100)
    position = 0
    dirty = 0
    while position < 64 * MIB:
        found = []
        handle.block_status(min(16 * MIB, 64 * MIB - position), position, lambda name, offset, extents, error: found.extend(runs(extents)) or 0)
        for length, flags in found:
            if flags & 1:
                backup[position:position + length] = handle.pread(length, position)
                dirty += length
            position += length
    assert 0 < dirty < 32 * MIB
    assert bytes(backup) == b"".join(handle.pread(16 * MIB, offset) for offset in range(0, 64 * MIB, 16 * MIB))
