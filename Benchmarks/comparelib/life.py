"""What a server costs when it does nothing: time to the first byte, memory, a copy of a disk that is mostly holes."""

import pathlib
import resource
import shutil
import subprocess
import sys
import time

from . import allocations
from .disk import Disk
from .servers import START_LIMIT, Place, present

# The protocol by hand, as the tests speak it.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "Tests/Interop"))
from wire import Closed, Wire  # noqa: E402

STARTS = 15
CONNECTIONS = 1000
COPIES = 3


def connection(uri):
    """A client in transmission."""
    wire = Wire(uri)
    try:
        return wire.go()
    except BaseException:
        wire.link.close()
        raise


def first_byte(server, place):
    """Milliseconds from exec to the first 512 bytes of the disk in a client's hands."""
    (place.directory / "socket").unlink(missing_ok=True)
    begin = time.perf_counter()
    running = server.start(place)
    try:
        while True:
            try:
                with connection(running.uri) as wire:
                    if wire.read(0, 512)[0]:
                        raise RuntimeError("the first read fails")
                took = (time.perf_counter() - begin) * 1e3
                break
            except (OSError, Closed):
                if time.perf_counter() - begin > START_LIMIT or not running.has_hope():
                    raise RuntimeError("no first byte") from None
                time.sleep(0.0002)
        return took
    finally:
        running.stop()


def memory(server, place, count):
    """Bytes when idle after the start and with `count` clients in transmission that ask for nothing."""
    running = server.start(place).wait()
    links = []
    try:
        time.sleep(0.3)
        found = {"idle": running.memory()}
        for _ in range(count):
            links.append(connection(running.uri))
        time.sleep(0.5)
        return found | {"connected": running.memory(), "connections": count}
    finally:
        for wire in links:
            wire.link.close()
        running.stop()


def copies(server, place, repetitions):
    """Seconds that nbdcopy takes: {"to null": […], "to a file": […]}."""
    found = {"to null": [], "to a file": []}
    target = place.directory / "copied"
    for _ in range(repetitions):
        for what, times in found.items():
            running = server.start(place).wait()
            try:
                begin = time.perf_counter()
                subprocess.run(["nbdcopy", running.uri, "null:" if what == "to null" else str(target)], check=True, capture_output=True, timeout=600)
                times.append(time.perf_counter() - begin)
            finally:
                running.stop()
                target.unlink(missing_ok=True)
    return found


def measure(servers, settings, executable):
    """{"start": {server: [ms]}, "memory": …, "copy": …, "allocations": …} and what could not be measured."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    results, broken = {"start": {}, "memory": {}, "copy": {}, "allocations": {}}, {}
    sparse = Disk(settings.directory / "sparse", 8 << 30, sparse=True)
    sparse.warm()

    def note(part, name, make):
        try:
            results[part][name] = make()
            print(f"{part}: {name}", file=sys.stderr)
        except Exception as error:  # whatever it was, the rest is worth having
            broken[f"{part}, {name}"] = str(error) or type(error).__name__
            print(f"note: {part}, {name}: {broken[f'{part}, {name}']}", file=sys.stderr)

    for _ in range(STARTS):
        for server in servers:
            if f"start, {server.name}" not in broken:
                earlier = results["start"].get(server.name, [])
                note("start", server.name, lambda: earlier + [first_byte(server, Place(settings.directory, settings.disk))])
    for server in servers:
        note("memory", server.name, lambda: memory(server, Place(settings.directory, settings.disk), CONNECTIONS))
    for server in servers if shutil.which("nbdcopy") else []:
        note("copy", server.name, lambda: copies(server, Place(settings.directory, sparse), COPIES))
    note("allocations", "ours", lambda: allocations.measure(executable, settings.client, settings.directory))
    return results, broken
