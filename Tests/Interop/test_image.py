"""nbd image beside qemu-img: the same images, the same verdicts, the same output."""

import json
import os
import pathlib
import random
import struct
import subprocess

import pytest

import images
import peers
import server as servers

def run(*argv, cwd, ok=(0,)):
    done = subprocess.run([str(word) for word in argv], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode in ok, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def tools(directory):
    peers.need("qemu-img", "qemu-io")

    class Tools:
        path = pathlib.Path(directory)

        def nbd(self, *argv, ok=(0,)):
            return run(servers.NBD, "image", *argv, cwd=directory, ok=ok)

        def qemu(self, *argv, ok=(0,)):
            return run("qemu-img", *argv, cwd=directory, ok=ok)

        def io(self, name, *commands):
            return run("qemu-io", *[word for command in commands for word in ("-c", command)], name, cwd=directory)

        def both(self, command, name, ok=(0, 2, 3)):
            """The same command of both, JSON: exit codes and values."""
            ours = self.nbd(command, "--json", name, ok=ok)
            theirs = self.qemu(command, "--output=json", name, ok=ok)
            return (ours.returncode, json.loads(ours.stdout)), (theirs.returncode, json.loads(theirs.stdout))

    return Tools()


OPTIONS = [
    "", "compat=0.10", "compat=0.10,cluster_size=512", "cluster_size=2M", "cluster_size=4096", "refcount_bits=1", "refcount_bits=2",
    "refcount_bits=8", "refcount_bits=32", "refcount_bits=64,cluster_size=512", "lazy_refcounts=on", "extended_l2=on",
    "extended_l2=on,cluster_size=16k", "compression_type=zstd", "backing_file=base.raw,backing_fmt=raw", "data_file=o.data",
    "data_file=o.data,data_file_raw=on", "preallocation=metadata", "preallocation=metadata,cluster_size=512", "preallocation=falloc",
    "preallocation=full", "preallocation=metadata,extended_l2=on", "preallocation=metadata,data_file=o.data",
    "extended_l2=on,data_file=o.data,data_file_raw=on",
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_new_image_is_what_qemu_img_makes(tools, options):
    images.random_file(tools.path / "base.raw", 3 * images.MIB)
    words = ["-o", options] if options else []
    for size in ("3M", "1", "100000000"):
        tools.qemu("create", "-q", "-f", "qcow2", *words, "image", size)
        theirs = json.loads(tools.qemu("info", "--output=json", "image").stdout)
        their_verdict = tools.both("check", "image")
        assert their_verdict[0] == their_verdict[1]
        tools.nbd("create", "-q", "-f", "qcow2", *words, "image", size)
        (_, ours), (_, seen) = tools.both("info", "image")
        assert ours == seen
        assert tools.nbd("info", "image").stdout == tools.qemu("info", "image").stdout
        for report in (theirs, seen):
            del report["actual-size"]
        assert theirs == seen
        (code, ours), (_, seen) = tools.both("check", "image", ok=(0,))
        assert ours == seen and code == 0


def filled(tools, name, options="", seed=1, size="8M"):
    """An image with data, zeroes, holes, a snapshot, compressed clusters and bitmaps as far as `options` allow."""
    tools.qemu("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), name, size)
    generator = random.Random(seed)
    tools.io(name, *[f"write -P {generator.randrange(1, 256)} {generator.randrange(0, 8000) * 1024} {generator.randrange(1, 128) * 512}"
                     for _ in range(20)])
    tools.io(name, "write -z 1M 200k", "discard 3M 300k", "write -c -P 7 6M 64k" if "data_file" not in options else "write -P 7 6M 64k")
    if "refcount_bits=1" not in options and "data_file" not in options:
        tools.qemu("snapshot", "-c", "before", name)
        tools.io(name, "write -P 9 2M 700k")
    if "compat=0.10" not in options:
        tools.qemu("bitmap", "--add", name, "first")
        tools.io(name, "write -P 8 5M 100k")
    return name


FILLED = ["", "cluster_size=512", "cluster_size=4k,refcount_bits=8", "compat=0.10", "extended_l2=on", "compression_type=zstd,cluster_size=64k",
          "data_file=o.data", "refcount_bits=1"]


def merged(entries):
    """A map without what the host's file system says of clusters: how far qemu-img asks that depends on its guesses."""
    result = []
    for entry in entries:
        entry = {**entry, "zero": entry["zero"] and not entry["data"]}
        if not entry["present"]:
            entry.pop("offset", None)  # subclusters of a cluster that has a place, and nothing in them
        last = result[-1] if result else None
        alike = last and all(last[key] == entry[key] for key in ("depth", "present", "zero", "data"))
        if alike and ("offset" in last) == ("offset" in entry) and last.get("offset", 0) + (last["length"] if "offset" in last else 0) == \
                entry.get("offset", 0):
            last["length"] += entry["length"]
        else:
            result.append(entry)
    return result


@pytest.mark.parametrize("options", FILLED)
def test_info_check_map_and_snapshot_list_agree(tools, options):
    name = filled(tools, "image", options)
    for command in ("info", "check"):
        ours, theirs = tools.both(command, name)
        assert ours == theirs, command
    ours, theirs = tools.both("map", name)
    assert merged(ours[1]) == merged(theirs[1])
    assert tools.nbd("info", name).stdout == tools.qemu("info", name).stdout
    assert tools.nbd("check", name).stdout == tools.qemu("check", name).stdout
    if "data_file" not in options:
        assert tools.nbd("snapshot", "list", name).stdout == tools.qemu("snapshot", "-l", name).stdout


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_the_map_of_a_chain_agrees(tools, depth):
    images.checkered(tools.path / "0", 6 * images.MIB, 256 * images.KIB)
    for level in range(1, depth + 1):
        size = ("8M", "5M", "7M")[level % 3]
        tools.qemu("create", "-q", "-f", "qcow2", "-b", str(level - 1), "-F", "raw" if level == 1 else "qcow2", str(level), size)
        tools.io(str(level), f"write -P {level} {level * 300}k 500k", f"write -z {level * 400}k 100k")
    ours, theirs = tools.both("map", str(depth))
    assert ours == theirs
    assert tools.nbd("map", str(depth)).stdout == tools.qemu("map", str(depth)).stdout


def header(path):
    with open(path, "rb") as file:
        front = file.read(104)
    return {"cluster": 1 << struct.unpack(">I", front[20:24])[0], "l1": struct.unpack(">Q", front[40:48])[0],
            "table": struct.unpack(">Q", front[48:56])[0]}


def poke(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def peek(path, offset):
    with open(path, "rb") as file:
        file.seek(offset)
        return struct.unpack(">Q", file.read(8))[0]


OFFSET = 0x00FFFFFFFFFFFE00


def damage(path, kind):
    """Breaks an image in one way."""
    fields = header(path)
    table = peek(path, fields["l1"]) & OFFSET
    block = peek(path, fields["table"])
    entry = next(table + at for at in range(0, fields["cluster"], 8) if peek(path, table + at) & OFFSET)
    value = peek(path, entry)
    cluster = (value & OFFSET) // fields["cluster"]
    match kind:
        case "leak":
            poke(path, entry, bytes(8))
        case "lost refcount":
            poke(path, block + 2 * cluster, bytes(2))
        case "high refcount":
            poke(path, block + 2 * cluster, struct.pack(">H", 7))
        case "flag of data":
            poke(path, entry, struct.pack(">Q", value ^ (1 << 63)))
        case "flag of a table":
            poke(path, fields["l1"], struct.pack(">Q", peek(path, fields["l1"]) ^ (1 << 63)))
        case "out of file":
            poke(path, entry, struct.pack(">Q", 1 << 45 | 1 << 63))
        case "table out of file":
            poke(path, fields["l1"], struct.pack(">Q", 1 << 45 | 1 << 63))
        case "unaligned":
            poke(path, entry, struct.pack(">Q", value + 512))
        case "unaligned table":
            poke(path, fields["l1"], struct.pack(">Q", peek(path, fields["l1"]) + 512))
        case "overlap":
            poke(path, entry + 8, struct.pack(">Q", value))
        case "overlap with the header's tables":
            poke(path, entry, struct.pack(">Q", fields["l1"] | 1 << 63))
        case "loop":
            poke(path, entry, struct.pack(">Q", table | 1 << 63))
        case "no block":
            poke(path, fields["table"], bytes(8))
        case "block out of file":
            poke(path, fields["table"], struct.pack(">Q", 1 << 45))
        case "unaligned block":
            poke(path, fields["table"], struct.pack(">Q", block + 512))
        case "no refcount table":
            poke(path, 56, bytes(4))


KINDS = ["leak", "lost refcount", "high refcount", "flag of data", "flag of a table", "out of file", "table out of file", "unaligned",
         "unaligned table", "overlap", "overlap with the header's tables", "loop", "no block", "block out of file", "unaligned block",
         "no refcount table"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_image_gets_the_same_verdict_and_repair(tools, kind):
    path = tools.path / "image"
    tools.qemu("create", "-q", "-f", "qcow2", "image", "8M")
    tools.io("image", "write -P 1 0 300k", "write -P 2 2M 300k")
    damage(path, kind)
    copy = tools.path / "copy"
    copy.write_bytes(path.read_bytes())
    ours = tools.nbd("check", "image", ok=(0, 1, 2, 3)).returncode
    theirs = tools.qemu("check", "image", ok=(0, 1, 2, 3)).returncode
    # They look for what lies at places inside of a cluster.
    if kind not in ("no refcount table", "unaligned block", "unaligned", "unaligned table"):
        (_, ours_told), (_, told) = tools.both("check", "image")
        # A count that is 0 is left out. An offset that leads out of the file is one finding of ours, and two of theirs.
        assert ours_told.keys() == told.keys()
        assert ours_told == told or "out of file" in kind
    # qemu-img does not get to the end of its check with these; we do.
    assert ours == (2 if kind in ("no refcount table", "unaligned block") else theirs)
    ours = tools.nbd("check", "-r", "all", "image", ok=(0, 1, 2, 3)).returncode
    theirs = tools.qemu("check", "-r", "all", "copy", ok=(0, 1, 2, 3)).returncode
    assert ours == theirs or kind == "unaligned block"
    # Whatever is left to find after our repair is what they find, too.
    assert tools.qemu("check", "image", ok=(0, 2, 3)).returncode == ours
    if ours == theirs == 0:
        tools.qemu("compare", "image", "copy")


@pytest.mark.parametrize("options", ["", "-c", "-o cluster_size=512", "-o cluster_size=2M -c", "-o compression_type=zstd -c", "-o extended_l2=on",
                                     "-o extended_l2=on -c", "-o preallocation=metadata", "-o data_file=x.data", "-o compat=0.10 -c",
                                     "-o refcount_bits=1", "-o lazy_refcounts=on", "-o refcount_bits=1 -c", "-o refcount_bits=2 -c",
                                     "-o refcount_bits=2,cluster_size=4k -c"])
def test_a_converted_image_is_equal(tools, options):
    size = 9 * images.MIB + 512
    images.sparse(tools.path / "raw", size, [(0, images.noise(300_000)), (images.MIB, b"text " * 100_000), (size - 700, images.noise(700))])
    tools.nbd("convert", "-f", "raw", "-O", "qcow2", *options.split(), "raw", "image")
    assert tools.qemu("check", "image").returncode == 0
    tools.qemu("compare", "-f", "raw", "-F", "qcow2", "raw", "image")
    tools.nbd("convert", "-f", "qcow2", "-O", "raw", "image", "back")
    assert images.sha256(tools.path / "back") == images.sha256(tools.path / "raw")
    assert images.allocated(tools.path / "back") <= images.allocated(tools.path / "raw") + images.MIB


def test_a_chain_and_a_snapshot_are_converted(tools):
    filled(tools, "base")
    tools.qemu("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top", "10M")
    tools.io("top", "write -P 3 1M 3M")
    tools.nbd("convert", "-O", "raw", "top", "ours")
    tools.qemu("compare", "-f", "raw", "-F", "qcow2", "ours", "top")
    tools.nbd("convert", "-O", "raw", "-l", "before", "base", "ours")
    tools.qemu("convert", "-O", "raw", "-l", "before", "base", "theirs")
    assert images.sha256(tools.path / "ours") == images.sha256(tools.path / "theirs")


def snapshot_of(directory):
    """Every file below: its links and content."""
    return {path.name: (path.stat().st_nlink, path.is_symlink(), path.read_bytes()) for path in directory.iterdir() if path.is_file()}


def refuses(tools, reason, *argv):
    before = snapshot_of(tools.path)
    assert reason in tools.nbd(*argv, ok=(1,)).stderr, argv
    assert snapshot_of(tools.path) == before, argv


def test_a_copy_is_not_written_over_a_file_of_its_source(tools):
    filled(tools, "base", "data_file=base.data")
    tools.qemu("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "middle")
    tools.qemu("create", "-q", "-f", "qcow2", "-b", "middle", "-F", "qcow2", "-o", "data_file=top.data", "top")
    tools.io("top", "write -P 5 1M 100k")
    for name in ("base", "base.data", "middle", "top", "top.data"):
        os.link(tools.path / name, tools.path / f"{name}.hard")
        os.symlink(name, tools.path / f"{name}.soft")
        for target in (name, f"{name}.hard", f"{name}.soft"):
            refuses(tools, "is the source, or lies below it", "convert", "-O", "raw", "top", target)
            refuses(tools, "is the source, or lies below it", "convert", "-O", "qcow2", "-c", "top", target)
            refuses(tools, "is the source, or lies below it", "convert", "-O", "qcow2", "-o", f"data_file={target}", "top", "new")
    refuses(tools, "is the source, or lies below it", "convert", "-f", "raw", "-O", "raw", "top", "top")
    tools.nbd("convert", "-O", "qcow2", "-o", "data_file=new.data", "top", "new")
    tools.qemu("compare", "top", "new")


@pytest.mark.parametrize("flags", [(), ("-u",)])
def test_an_image_is_not_made_over_what_it_stands_on(tools, flags):
    filled(tools, "base")
    os.link(tools.path / "base", tools.path / "hard")
    os.symlink("base", tools.path / "soft")
    size = ("1M",) if flags else ()
    for target in ("base", "hard", "soft"):
        refuses(tools, "is the backing file", "create", "-f", "qcow2", "-b", "base", "-F", "qcow2", *flags, target, *size)
        refuses(tools, "is the backing file", "create", "-f", "qcow2", "-b", target, "-F", "qcow2", *flags, "base", *size)
        refuses(tools, "is the backing file", "create", "-f", "qcow2", "-b", "base", "-F", "qcow2", *flags, "-o", f"data_file={target}",
                "new", *size)
        refuses(tools, "and its data file", "create", "-f", "qcow2", "-o", f"data_file={target}", "base", "1M")
    # Names that lead nowhere, yet.
    refuses(tools, "and its data file", "create", "-f", "qcow2", "-o", "data_file=./new", "new", "1M")
    refuses(tools, "is the backing file", "create", "-f", "qcow2", "-b", "./new", "-F", "qcow2", "-u", "new", "1M")


def test_an_image_is_not_made_over_what_lies_below_its_backing_file(tools):
    filled(tools, "base", "data_file=base.data")
    tools.qemu("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "middle")
    tools.qemu("create", "-q", "-f", "qcow2", "-b", "middle", "-F", "qcow2", "top")
    for target in ("base", "base.data", "middle"):
        refuses(tools, "is the backing file, or lies below it", "create", "-f", "qcow2", "-b", "top", "-F", "qcow2", target)


FAILS = [("create", "-f", "qcow2", "-o", "preallocation=falloc", "new", "1P"),
         ("create", "-f", "qcow2", "-o", "preallocation=falloc,data_file=new.data", "new", "1P"),
         ("create", "-f", "qcow2", "-o", "data_file=none/new.data", "new", "1M"),
         ("create", "-f", "raw", "-o", "preallocation=falloc", "new", "1P"),
         ("convert", "-O", "raw", "broken", "new"), ("convert", "-O", "qcow2", "-c", "broken", "new"),
         ("convert", "-O", "qcow2", "-o", "data_file=new.data", "broken", "new")]


@pytest.mark.parametrize("argv", FAILS, ids=" ".join)
def test_what_fails_leaves_no_file_of_its_own_behind(tools, argv):
    filled(tools, "broken")
    damage(tools.path / "broken", "out of file")
    argv = [word.replace("1P", "4P" if "raw" in argv else "200T") for word in argv]
    if "qcow2" in argv and "create" in argv:
        argv[3:5] = ["-o", argv[4] + ",cluster_size=2M"]
    before = set(os.listdir(tools.path))
    tools.nbd(*argv, ok=(1,))
    assert set(os.listdir(tools.path)) == before
    # What was there is not ours to remove.
    (tools.path / "new").write_bytes(b"something")
    tools.nbd(*argv, ok=(1,))
    assert set(os.listdir(tools.path)) == before | {"new"}


@pytest.mark.parametrize("options", ["data_file_raw=on", "preallocation=metadata", "data_file_raw=on,extended_l2=on", "preallocation=falloc"])
@pytest.mark.parametrize("old", [100_000, 1 << 20, 5 << 20])
def test_a_disk_on_an_old_data_file_is_empty(tools, options, old):
    (tools.path / "old").write_bytes(b"x" * old)
    tools.nbd("create", "-q", "-f", "qcow2", "-o", f"data_file=old,{options}", "image", "1M")
    assert (tools.path / "old").read_bytes() == bytes(1 << 20)
    tools.qemu("convert", "-O", "raw", "image", "raw")
    assert (tools.path / "raw").read_bytes() == bytes(1 << 20)


def test_a_backing_file_elsewhere_needs_permission(tools):
    (tools.path / "other").mkdir()
    images.random_file(tools.path / "other/base", images.MIB)
    tools.qemu("create", "-q", "-f", "qcow2", "-b", "other/base", "-F", "raw", "top")
    refused = tools.nbd("convert", "-O", "raw", "top", "copy", ok=(1,))
    assert "--allow-path" in refused.stderr
    tools.nbd("convert", "--allow-path", "other", "-O", "raw", "top", "copy")
    assert images.sha256(tools.path / "copy") == images.sha256(tools.path / "other/base")


@pytest.mark.parametrize("options", FILLED)
def test_a_resized_image_is_in_order_and_reads_as_before(tools, options):
    name = filled(tools, "image", options)
    if "compat=0.10" in options:
        tools.qemu("snapshot", "-d", "before", name)
    tools.qemu("convert", "-O", "raw", name, "raw")
    for size, flags in (("20M", ()), ("+5M", ()), ("3000000", ("--shrink",)), ("30M", ()), ("-29M", ("--shrink",)), ("8M", ())):
        if "data_file" in options and (flags or size == "8M"):
            continue
        tools.nbd("resize", "-q", *flags, name, size)
        assert tools.qemu("check", name).returncode == 0
        virtual = json.loads(tools.qemu("info", "--output=json", name).stdout)["virtual-size"]
        os.truncate(tools.path / "raw", virtual)
        tools.qemu("compare", "-f", "raw", "-F", "qcow2", "raw", name)
    refused = tools.nbd("resize", name, "1M", ok=(1,))
    assert "--shrink" in refused.stderr


def test_a_grown_overlay_shows_zeroes_not_the_longer_image_below(tools):
    images.random_file(tools.path / "base", 4 * images.MIB)
    tools.qemu("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "top", "1M")
    tools.nbd("resize", "top", "6M")
    tools.nbd("convert", "-O", "raw", "top", "raw")
    data = (tools.path / "raw").read_bytes()
    assert data == (tools.path / "base").read_bytes()[:images.MIB] + bytes(5 * images.MIB)
    tools.qemu("compare", "-f", "raw", "-F", "qcow2", "raw", "top")


def test_bitmaps_are_what_qemu_img_makes_of_them(tools):
    def listed(name):
        return json.loads(tools.qemu("info", "--output=json", name).stdout)["format-specific"]["data"].get("bitmaps", [])

    for maker, name in ((tools.nbd, "ours"), (tools.qemu, "theirs")):
        tools.qemu("create", "-q", "-f", "qcow2", name, "10M")
        maker("bitmap", "--add", name, "plain")
        maker("bitmap", "--add", "-g", "512", name, "fine")
        maker("bitmap", "--add", "--disable", "-g", "1M", name, "coarse")
        tools.io(name, "write -P 1 1M 100k", "write -P 2 5M 1")
        maker("bitmap", "--merge", "fine", name, "coarse")
        maker("bitmap", "--disable", name, "plain")
        maker("bitmap", "--enable", name, "coarse")
        maker("bitmap", "--add", name, "gone")
        maker("bitmap", "--remove", name, "gone")
        maker("bitmap", "--add", "-g", "4k", name, "cleared")
        tools.io(name, "write -P 1 1M 100k")
        maker("bitmap", "--clear", name, "cleared")
        assert tools.qemu("check", name).returncode == 0
    assert listed("ours") == listed("theirs")
    # Bits from another image, both ways.
    tools.nbd("bitmap", "--merge", "fine", "-b", "theirs", "-F", "qcow2", "ours", "plain")
    tools.qemu("bitmap", "--merge", "fine", "-b", "ours", "-F", "qcow2", "theirs", "plain")
    assert tools.qemu("check", "ours").returncode == 0
    for verb in ("--merge", "--clear", "--enable"):
        tools.nbd("bitmap", *([verb, "no"] if verb == "--merge" else [verb]), "ours", "none", ok=(1,))


def test_snapshots_of_ours_are_snapshots_to_qemu_img(tools):
    filled(tools, "image")
    tools.qemu("convert", "-O", "raw", "image", "now")
    tools.nbd("snapshot", "create", "image", "ours")
    assert tools.qemu("check", "image").returncode == 0
    tools.io("image", "write -P 77 0 4M")
    assert tools.qemu("check", "image").returncode == 0
    tools.qemu("convert", "-O", "raw", "-l", "ours", "image", "kept")
    assert images.sha256(tools.path / "kept") == images.sha256(tools.path / "now")
    # Ours as theirs: no bitmap would know what has changed.
    assert '"first"' in tools.nbd("snapshot", "apply", "image", "ours", ok=(1,)).stderr
    assert "bitmaps" in tools.qemu("snapshot", "-a", "ours", "image", ok=(1,)).stderr
    tools.nbd("bitmap", "--remove", "image", "first")
    tools.nbd("snapshot", "apply", "image", "ours")
    assert tools.qemu("check", "image").returncode == 0
    tools.qemu("compare", "-f", "raw", "-F", "qcow2", "now", "image")
    tools.nbd("snapshot", "delete", "image", "before")
    tools.nbd("snapshot", "delete", "image", "ours")
    assert tools.qemu("check", "image").returncode == 0
    assert tools.nbd("snapshot", "list", "image").stdout == ""
    tools.qemu("compare", "-f", "raw", "-F", "qcow2", "now", "image")


@pytest.mark.parametrize("flags", ["--enable", "--disable"])
def test_a_snapshot_is_not_applied_while_there_are_bitmaps(tools, flags):
    tools.qemu("create", "-q", "-f", "qcow2", "image", "4M")
    tools.nbd("snapshot", "create", "image", "old")
    tools.nbd("bitmap", "--add", flags, "image", "backup")
    before = (tools.path / "image").read_bytes()
    assert '"backup"' in tools.nbd("snapshot", "apply", "image", "old", ok=(1,)).stderr
    assert (tools.path / "image").read_bytes() == before
    assert "bitmaps" in tools.qemu("snapshot", "-a", "old", "image", ok=(1,)).stderr


def test_snapshots_whose_names_look_like_ids_are_told_apart_as_qemu_img_does(tools):
    tools.qemu("create", "-q", "-f", "qcow2", "image", "4M")
    for name in ("0", "1", "2", "x", "1"):
        tools.io("image", f"write -P {ord(name)} 0 64k")
        tools.qemu("snapshot", "-c", name, "image")
    content = (tools.path / "image").read_bytes()

    def result(change, word):
        (tools.path / "copy").write_bytes(content)
        code = change(word).returncode
        rows = tools.qemu("snapshot", "-l", "copy").stdout
        tools.qemu("convert", "-O", "raw", "copy", "raw")
        return code, rows, (tools.path / "raw").read_bytes()

    for word in ("0", "1", "2", "3", "4", "5", "x", "9"):
        for verb, flag in (("delete", "-d"), ("apply", "-a")):
            ours = result(lambda name: tools.nbd("snapshot", verb, "copy", name, ok=(0, 1)), word)
            assert ours == result(lambda name: tools.qemu("snapshot", flag, name, "copy", ok=(0, 1)), word), (verb, word)


ENCRYPTIONS = ["encrypt.format=aes", "compat=0.10,encrypt.format=aes", "encrypt.format=luks,encrypt.iter-time=10",
               "encrypt.format=luks,encrypt.iter-time=10,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,"
               "encrypt.ivgen-hash-alg=sha256,encrypt.hash-alg=sha1"]


def encrypted(tools, name, options):
    for _ in range(10):
        # On a busy machine qemu-img finds that it cannot tell how long a key takes.
        made = tools.qemu("create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=abc", "-o", f"{options},encrypt.key-secret=s",
                          name, "1M", ok=(0, 1))
        if made.returncode == 0:
            return
        assert "CPU usage" in made.stderr, made.stderr
    pytest.skip("the machine is too busy for keys")


@pytest.mark.parametrize("options", ENCRYPTIONS)
def test_of_an_encrypted_image_is_told_what_needs_no_key(tools, options):
    encrypted(tools, "image", options)
    (_, ours), (_, theirs) = tools.both("info", "image")
    assert ours == theirs
    assert tools.nbd("info", "image").stdout == tools.qemu("info", "image").stdout
    if "luks" in options:
        # A header that tells nothing is no reason to say nothing.
        (tools.path / "image").write_bytes((tools.path / "image").read_bytes().replace(b"LUKS", b"LOST"))
        told = json.loads(tools.nbd("info", "--json", "image").stdout)
        assert told["encrypted"] and told["format-specific"]["data"]["encrypt"] == {"format": "luks"}


def test_encrypted_and_unknown_images_are_refused_by_name(tools):
    encrypted(tools, "luks", "encrypt.format=luks,encrypt.iter-time=10")
    assert json.loads(tools.nbd("info", "--json", "luks").stdout)["encrypted"] is True
    assert "LUKS" in tools.nbd("check", "luks", ok=(1,)).stderr
    tools.qemu("create", "-q", "-f", "qcow2", "new", "1M")
    poke(tools.path / "new", 72, struct.pack(">Q", 1 << 40))
    assert "bit 40" in tools.nbd("info", "new", ok=(1,)).stderr
