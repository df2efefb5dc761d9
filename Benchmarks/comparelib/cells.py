"""What is measured: one load by one client on one kind of socket. A cell's name is what `--cells` and thresholds.tsv match:

    CLIENT SOCKET PATTERN SIZE qdDEPTH cCONNECTIONS        bench unix randread 4k qd16 c1
    nbdcopy SOCKET from|to server cCONNECTIONS             nbdcopy tcp from server c4
"""

import itertools
import json
import subprocess
import time

from . import processes

RAMP = 0.15  # seconds that a client runs before it counts


def finish(done):
    if done.returncode != 0:
        text = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(text[-1] if text else f"{done.args[0]} ended with {done.returncode}")


class Cell:
    unit = "op/s"
    late = 0  # operations that the client waits for when its time is over, and does not count

    def __init__(self, client, socket, pattern, size, depth, connections):
        self.client, self.socket, self.pattern, self.size, self.depth, self.connections = client, socket, pattern, size, depth, connections
        self.name = f"{client} {socket} {pattern} {size} qd{depth} c{connections}"
        self.writes = "write" in pattern

    def run(self, running, settings):
        """One sample: `value` in the cell's unit, latencies and CPU for each operation in µs."""
        before, used = processes.members(running.session), running.cpu()
        sample = self.load(running.uri, settings)
        processes.await_children(running.session, before)
        # A client counts operations between its ramp and its end, the server's CPU all of them: take the rate for both.
        operations = sample["value"] * (settings.seconds + RAMP) + self.late
        return sample | {"cpu_us": (running.cpu() - used) / operations * 1e6}


class Bench(Cell):
    """`nbd bench`."""

    def __init__(self, *cell, client="bench"):
        super().__init__(client, *cell)
        self.late = self.depth * self.connections

    def load(self, uri, settings):
        done = subprocess.run(
            [settings.client, "bench", uri, "--pattern", self.pattern, "--block-size", self.size, "--depth", str(self.depth),
             "--connections", str(self.connections), "--duration", str(settings.seconds), "--ramp", str(RAMP), "--json"],
            capture_output=True, text=True, timeout=settings.seconds + 60)
        finish(done)
        found = json.loads(done.stdout)
        if found["errors"]:
            raise RuntimeError(f"{found['errors']} errors")
        return {"value": found["ops_per_second"], "p50_us": found["latency_us"]["p50"], "p99_us": found["latency_us"]["p99"],
                "client_cpu_us": found["client_cpu_us_per_op"]}


class Fio(Cell):
    """fio with its nbd engine: a heavy client that others know. One job for each connection."""

    def __init__(self, *cell):
        super().__init__("fio", *cell)

    def load(self, uri, settings):
        command = ["fio", "--name=cell", "--ioengine=nbd", f"--uri={uri}", f"--rw={self.pattern}", f"--bs={self.size}",
                   f"--iodepth={self.depth}", f"--numjobs={self.connections}", f"--size={settings.disk.size}", "--time_based",
                   f"--runtime={round(settings.seconds * 1000)}ms", f"--ramp_time={round(RAMP * 1000)}ms", "--thread", "--group_reporting",
                   "--randrepeat=0", "--norandommap", "--output-format=json"]
        if self.connections > 1 and not self.pattern.startswith("rand"):
            share = settings.disk.size // self.connections
            command += [f"--offset_increment={share}", f"--size={share}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=settings.seconds + 60)
        finish(done)
        job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
        if job["error"]:
            raise RuntimeError(f"fio error {job['error']}")
        side = job["write" if self.writes else "read"]
        latency = {key: value / 1e3 for key, value in side["clat_ns"].get("percentile", {}).items()}
        return {"value": side["iops"], "p50_us": latency.get("50.000000", 0), "p99_us": latency.get("99.000000", 0)}


class Copy:
    """nbdcopy of the whole disk, to the server or from it. Its operation is taken to be 256 KiB, as nbdcopy asks for."""
    unit = "MB/s"
    client = "nbdcopy"

    def __init__(self, socket, writes, connections):
        self.socket, self.writes, self.connections = socket, writes, connections
        self.name = f"nbdcopy {socket} {'to' if writes else 'from'} server c{connections}"

    def run(self, running, settings):
        ends = [str(settings.source.path), running.uri] if self.writes else [running.uri, "null:"]
        before, used, start = processes.members(running.session), running.cpu(), time.monotonic()
        finish(subprocess.run(["nbdcopy", f"--connections={self.connections}", *ends], capture_output=True, text=True, timeout=300))
        elapsed = time.monotonic() - start
        processes.await_children(running.session, before)
        return {"value": settings.disk.size / elapsed / 1e6, "cpu_us": (running.cpu() - used) / (settings.disk.size / (256 << 10)) * 1e6}


def shapes():
    """(pattern, size, depth) of issue 3."""
    found = [("randread", "4k", depth) for depth in (1, 16, 64)] + [("randwrite", "4k", depth) for depth in (1, 16)]
    return found + list(itertools.product(("read", "write"), ("64k", "256k", "1m"), (4, 16)))


# A third of them also with fio.
FIO_SHAPES = [("randread", "4k", 1), ("randread", "4k", 16), ("randread", "4k", 64), ("randwrite", "4k", 16),
              ("read", "64k", 16), ("write", "64k", 16)]


def matrix(sockets):
    found = []
    for socket, connections in itertools.product(sockets, (1, 4)):
        found += [Bench(socket, *shape, connections) for shape in shapes()]
        found += [Fio(socket, *shape, connections) for shape in FIO_SHAPES]
        found += [Copy(socket, writes, connections) for writes in (False, True)]
    return found


def quick():
    """A first look: what a change is most likely to move."""
    found = [Bench("unix", *shape, 1) for shape in shapes() if shape[1] == "4k" or shape[1:] == ("64k", 16) or shape == ("read", "1m", 16)]
    return found + [Bench("unix", "randread", "4k", 16, 4), Fio("unix", "randread", "4k", 16, 1), Copy("unix", False, 4), Copy("unix", True, 4)]


def direct():
    """Random reads past the page cache, and into a cold one."""
    return [Bench("unix", "randread", "4k", depth, 1, client=kind) for kind in ("direct", "cold") for depth in (1, 16, 64)]
