"""nbdinfo, in all its modes."""

import json
import os
import pathlib

import pytest

from images import KIB, MIB, noise, sparse
from peers import need, out, run


@pytest.fixture
def nbdinfo():
    return need("nbdinfo")


@pytest.fixture
def holey(directory):
    """1 MiB of data, 1 MiB of hole, 1 MiB of data, 5 MiB of hole."""
    return sparse(directory / "holey", 8 * MIB, [(0, noise(MIB)), (2 * MIB, noise(MIB, 2))])


def test_describes_an_export(serve, disk, nbdinfo):
    text = out(nbdinfo, serve(disk).uri)
    # S-SR-02, S-HS-03
    assert "newstyle-fixed without TLS, using structured packets" in text
    assert "export-size: 67108864" in text


def test_describes_an_export_as_json(serve, disk, nbdinfo):
    # S-EXP-09, S-INFO-10, S-INFO-13, S-INFO-14, P-FLG-03, P-SIZE-01, P-SIZE-02, P-SIZE-03
    export, = json.loads(out(nbdinfo, "--json", serve(disk).uri))["exports"]
    expected = {
        "export-name": "", "export-size": 64 * MIB, "is_read_only": False, "can_flush": True, "can_fua": True,
        "can_trim": True, "can_zero": True, "can_fast_zero": True, "can_cache": True, "can_df": True,
        "can_multi_conn": True,
    }
    assert {key: export[key] for key in expected} == expected
    assert "base:allocation" in export["contexts"]
    assert export["block_size_minimum"] == 1
    assert export["block_size_preferred"] >= 4096
    assert export["block_size_maximum"] == 32 * MIB


def test_rotational_is_what_the_disk_below_is(serve, disk, nbdinfo):
    # S-EXP-10
    run(nbdinfo, "--is=rotational", serve("memory:1M").uri, status=2)
    number = disk.stat().st_dev
    device = pathlib.Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    for place in (device, device.parent):
        if (place / "queue/rotational").exists():
            rotates = (place / "queue/rotational").read_text().strip() == "1"
            run(nbdinfo, "--is=rotational", serve(disk).uri, status=0 if rotates else 2)
            break


def test_a_read_only_export_advertises_no_writes(serve, disk, nbdinfo):
    # S-BUG-06, P-FLG-02
    export, = json.loads(out(nbdinfo, "--json", serve(disk, read_only=True).uri))["exports"]
    assert export["is_read_only"]
    assert not export["can_trim"] and not export["can_zero"] and not export["can_fast_zero"]
    assert export["can_multi_conn"]


def test_gives_name_and_description(serve, disk, nbdinfo):
    # S-INFO-08, S-INFO-09
    server = serve(disk, name="vol/ü 1", description="the first disk")
    export, = json.loads(out(nbdinfo, "--json", server.uri))["exports"]
    assert (export["export-name"], export["description"]) == ("vol/ü 1", "the first disk")


def test_lists_exports(serve, disk, nbdinfo):
    # S-LIST-02, S-LIST-03, S-LIST-04
    text = out(nbdinfo, "--list", serve(disk, name="data", description="words").uri)
    assert 'export="data"' in text and "words" in text


def test_gives_the_exact_size(serve, directory, nbdinfo):
    # S-EXP-06, S-BUG-13: a file that is no multiple of 512 keeps its size
    for size in (0, 1, 511, 513, 1000):
        image = sparse(directory / f"{size}", size)
        assert out(nbdinfo, "--size", serve(image).uri) == f"{size}\n"
        assert image.stat().st_size == size


@pytest.mark.parametrize("question, writable, read_only", [
    ("--can=connect", 0, 0), ("--can=read", 0, 0), ("--can=write", 0, 2), ("--can=flush", 0, 0),
    ("--can=fua", 0, 0), ("--can=trim", 0, 2), ("--can=zero", 0, 2), ("--can=fast-zero", 0, 2),
    ("--can=cache", 0, 0), ("--can=df", 0, 0), ("--can=multi-conn", 0, 0), ("--can=structured-reply", 0, 0),
    ("--is=read-only", 2, 0), ("--is=tls", 2, 2),
])
def test_answers_whether(serve, disk, nbdinfo, question, writable, read_only):
    # P-FLG-01, P-FLG-04, P-FLG-05
    run(nbdinfo, question, serve(disk).uri, status=writable)
    run(nbdinfo, question, serve(disk, read_only=True).uri, status=read_only)


def test_maps_data_and_holes(serve, holey, nbdinfo):
    # S-BST-07, P-CMD-BST-2
    extents = json.loads(out(nbdinfo, "--map", "--json", serve(holey).uri))
    assert [(e["offset"], e["length"], e["type"]) for e in extents] == [
        (0, MIB, 0), (MIB, MIB, 3), (2 * MIB, MIB, 0), (3 * MIB, 5 * MIB, 3)]


def test_sums_up_the_map(serve, holey, nbdinfo):
    lines = out(nbdinfo, "--map", "--totals", serve(holey).uri).split("\n")
    assert [line.split()[0] for line in lines if line] == [str(2 * MIB), str(6 * MIB)]


def test_maps_a_huge_hole_in_few_requests(serve, directory, nbdinfo):
    # S-LIM-09: lengths near and above 32 bits
    image = sparse(directory / "huge", 9 << 40, [((9 << 40) - 4 * KIB, b"x" * 4096)])
    totals = out(nbdinfo, "--map", "--totals", serve(image).uri, limit=30).split("\n")
    assert [line.split()[0] for line in totals if line] == ["4096", str((9 << 40) - 4096)]


def test_an_unknown_export_is_an_error(serve, disk, nbdinfo):
    # S-INFO-07
    server = serve(disk, name="there")
    done = run(nbdinfo, server.uri.replace("there", "elsewhere"), status=1)
    assert "elsewhere" in done.stderr
    run(nbdinfo, server.uri)


def test_maps_memory(serve, nbdinfo):
    totals = out(nbdinfo, "--map", "--totals", serve("memory:64M").uri)
    assert str(64 * MIB) in totals and "hole,zero" in totals
