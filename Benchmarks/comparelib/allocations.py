"""Heap allocations of our server for each request in steady state, counted by Benchmarks/allocations.c.

Two runs of the same load that differ in length alone: connecting, and whatever grows in the first milliseconds, is in both, and the
difference belongs to the requests. The short one is so short that a burst in it cannot hide what the long one allocates.
"""

import json
import os
import pathlib
import shutil
import struct
import subprocess
import time

from .disk import Disk
from .servers import Place, Running, ours

WARM, SHORT, LONG = 0.3, 0.05, 1.5  # seconds
LONGEST_PAUSE = 2.5  # seconds after which a file whose writes stalled is written by the loop again (HostIO/StallGuard)

LOADS = [("randread", "4k", 1), ("randread", "4k", 16), ("randwrite", "4k", 1), ("randwrite", "4k", 16), ("read", "64k", 4)]


def library(directory):
    """Compiles the counter; its path."""
    source = pathlib.Path(__file__).resolve().parents[1] / "allocations.c"
    path = pathlib.Path(directory) / "allocations.so"
    subprocess.run(["cc", "-O2", "-Wall", "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
    return path


class Counted(Running):
    """Our server with the counter in it."""

    def __init__(self, executable, place):
        self.counters = place.directory / "allocations"
        # Through env, so that the counter is in the server alone.
        preload = ["env", f"LD_PRELOAD={library(place.directory)}", f"ALLOCATIONS={self.counters}"]
        server = ours(executable)
        command = server.command
        server.command = lambda where: preload + command(where)
        super().__init__(server, place)

    def count(self):
        """Allocations so far: all counters but that of free."""
        with open(f"{self.counters}.{self.process.pid}", "rb") as file:
            return sum(struct.unpack("5Q", file.read(40))[:4])


def run(client, uri, pattern, size, depth, seconds):
    """Operations done in a run without ramp."""
    done = subprocess.run([client, "bench", uri, "--pattern", pattern, "--block-size", size, "--depth", str(depth), "--duration", str(seconds),
                           "--ramp", "0", "--json"], capture_output=True, text=True, timeout=seconds + 60)
    if done.returncode != 0:
        raise RuntimeError(f"nbd bench: {done.stderr.strip()}")
    return json.loads(done.stdout)["operations"]


def for_each_request(client, running, pattern, size, depth):
    """Allocations for each request of this load."""
    counted = []
    for seconds in (SHORT, LONG):
        before = running.count()
        operations = run(client, running.uri, pattern, size, depth, seconds)
        counted.append((operations, running.count() - before))
    (few, less), (many, more) = counted
    if many < 4 * few:
        raise RuntimeError(f"{pattern}: {many} requests in {LONG} s, {few} in {SHORT} s: the machine is too busy to count")
    return (more - less) / (many - few)


def measure(executable, client, directory):
    """{"randread 4k qd1": allocations per request, …} on a warm file of 64 MiB."""
    if not shutil.which("cc"):
        raise RuntimeError("no C compiler")
    disk = Disk(pathlib.Path(directory) / "counted", 64 << 20)
    disk.warm()
    running = Counted(executable, Place(pathlib.Path(directory), disk)).wait()
    try:
        # Every page, in order and at random, read and written: what is made at the first touch is made now.
        for pattern, size in [("read", "1m"), ("randread", "4k"), ("write", "1m"), ("randwrite", "4k")]:
            run(client, running.uri, pattern, size, 16, WARM)
        found = {}
        for load in LOADS:
            # A write that stalls sends those after it to threads, which is no steady state: what belongs to the requests is there each time.
            counts = []
            while len(counts) < 4 and (not counts or counts[-1] > 0.005):
                if counts:
                    time.sleep(LONGEST_PAUSE)
                counts.append(for_each_request(client, running, *load))
            found["{} {} qd{}".format(*load)] = min(counts)
        return found
    finally:
        running.stop()
        os.unlink(disk.path)
