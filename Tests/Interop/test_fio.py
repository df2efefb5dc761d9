"""fio writes random blocks, reads them back and checks their sums."""

import json

import pytest

from peers import need, run


@pytest.fixture
def fio(directory):
    program = need("fio")
    if "nbd" not in run(program, "--enghelp").stdout:
        pytest.skip("fio was built without the nbd engine")

    def fio(uri, **options):
        words = [f"--{key}={value}" for key, value in options.items()]
        text = run(program, "--name=job", "--ioengine=nbd", f"--uri={uri}", "--output-format=json", *words,
                   cwd=directory, limit=180).stdout
        job, = json.loads(text[text.index("{"):])["jobs"]
        assert job["error"] == 0
        return job
    return fio


@pytest.mark.parametrize("depth, block", [(1, "4k"), (32, "4k"), (16, "512"), (8, "512k")])
def test_random_writes_verify(serve, disk, fio, depth, block):
    job = fio(serve(disk).uri, rw="randwrite", bs=block, size="8m", iodepth=depth, verify="crc32c", do_verify=1)
    assert job["write"]["io_bytes"] == 8 << 20 and job["read"]["io_bytes"] > 0


def test_mixed_load_with_trims_and_flushes(serve, disk, fio):
    uri = serve(disk).uri
    fio(uri, rw="randrw", bssplit="4k/50:64k/50", size="16m", iodepth=32, fsync=64)
    fio(uri, rw="randtrim", bs="64k", size="8m", iodepth=8)


def test_verify_over_tcp(serve, disk, fio):
    fio(serve(disk, tcp=["127.0.0.1"]).uri, rw="randwrite", bs="16k", size="8m", iodepth=16, verify="crc32c")


def test_verify_in_memory(serve, fio):
    fio(serve("memory:32M").uri, rw="randwrite", bs="4k", size="16m", iodepth=32, verify="crc32c")
