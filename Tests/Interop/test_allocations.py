"""Requests in steady state allocate nothing: counted in the running server by Benchmarks/allocations.c."""

import pathlib
import subprocess
import sys

import pytest

from peers import need
from server import NBD, REPOSITORY

sys.path.insert(0, str(REPOSITORY / "Benchmarks"))
from comparelib import allocations, thresholds  # noqa: E402


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """{load: allocations per request}, of one server."""
    if not sys.platform.startswith("linux"):
        pytest.skip("counts with glibc's means")
    need("cc")
    # A short path: the address of a Unix socket holds 107 bytes.
    directory = tmp_path_factory.mktemp("a")
    found = allocations.measure(NBD, NBD, directory)
    print(*(f"{load}: {value:.4f} allocations per request" for load, value in found.items()), sep="\n")  # shown by pytest -s
    return found


def test_the_counter_counts(tmp_path):
    need("cc")
    library = allocations.library(tmp_path)
    source = ("import ctypes, os, struct\n"
              "libc = ctypes.CDLL(None)\n"
              "libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]\n"
              "count = lambda: struct.unpack('5Q', open(f'{os.environ[\"ALLOCATIONS\"]}.{os.getpid()}', 'rb').read())\n"
              "before = count()\n"
              "for _ in range(1000): libc.free(libc.malloc(10000))\n"
              "after = count()\n"
              "print(after[0] - before[0], after[4] - before[4])\n")
    done = subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, text=True,
                          env={"LD_PRELOAD": str(library), "ALLOCATIONS": str(tmp_path / "counters")})
    mallocs, frees = map(int, done.stdout.split())
    # The interpreter allocates, too, but little.
    assert 1000 <= mallocs < 1500 and 1000 <= frees < 1500
    assert list(pathlib.Path(tmp_path).glob("counters.*"))


@pytest.mark.parametrize("load", [f"{pattern} {size} qd{depth}" for pattern, size, depth in allocations.LOADS])
def test_warm_requests_allocate_nothing(counted, load):
    (passed, line), = thresholds.allocation_verdicts({load: counted[load]}, thresholds.load())
    assert passed, line
