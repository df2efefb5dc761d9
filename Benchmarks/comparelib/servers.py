"""Ours, the peers and the floor: how each is started on one file, found, asked what it used, and ended."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

from . import processes

OURS, FLOOR = "ours", "floor"
START_LIMIT = STOP_LIMIT = 10  # seconds


@dataclasses.dataclass
class Place:
    """Where a server is started: its directory (for sockets, logs, configuration), the file to serve, and whether over TCP."""
    directory: pathlib.Path
    disk: object
    tcp: bool = False

    def __post_init__(self):
        self.socket = self.directory / "socket"
        self.port = free_port() if self.tcp else None


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Running:
    """One server process, and what it started."""

    def __init__(self, server, place):
        """Starts it; does not wait."""
        self.server, self.place = server, place
        place.socket.unlink(missing_ok=True)
        self.log = open(place.directory / f"{server.name}.log", "w+")
        command = server.command(place)
        # A session of its own, so that whatever it forks can be found and ended with it.
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True)
        self.session = self.process.pid

    @property
    def uri(self):
        export = self.server.export
        return f"nbd://127.0.0.1:{self.place.port}/{export}" if self.place.tcp else f"nbd+unix:///{export}?socket={self.place.socket}"

    def wait(self):
        """Until it greets a client. RuntimeError with the last line of its log if that never happens.

        That it listens is not enough: nbd-server does, and then computes for half a second.
        """
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline and self.has_hope():
            try:
                self.find()
                with socket.socket(socket.AF_INET if self.place.tcp else socket.AF_UNIX) as probe:
                    probe.settimeout(START_LIMIT)
                    probe.connect(("127.0.0.1", self.place.port) if self.place.tcp else str(self.place.socket))
                    if probe.recv(18, socket.MSG_WAITALL).startswith(b"NBDMAGIC"):
                        return self
            except (OSError, ValueError):
                time.sleep(0.002)
        self.log.seek(0)
        text = self.log.read().strip().splitlines()
        self.stop()
        raise RuntimeError(f"{self.server.name} does not start: {text[-1] if text else 'no message'}")

    def has_hope(self):
        # One that goes into the background ends in the foreground.
        return self.process.poll() in ([None, 0] if self.server.pid_file else [None])

    def find(self):
        """The session of one that went into the background, by its file: ValueError, OSError while that is not there."""
        if self.server.pid_file:
            self.session = int((self.place.directory / self.server.pid_file).read_text())

    def stop(self):
        with contextlib.suppress(OSError, ValueError):
            self.find()
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.session, number)
            except ProcessLookupError:
                break
            deadline = time.monotonic() + STOP_LIMIT
            while time.monotonic() < deadline and self.is_running():
                time.sleep(0.002)
        self.process.wait()
        self.log.close()

    def is_running(self):
        self.process.poll()  # reaps it; one in the background is for init to reap, which may take a second: so zombies do not count
        return bool(processes.members(self.session))

    def cpu(self):
        return processes.cpu_seconds(self.session)

    def major_faults(self):
        return processes.major_faults(self.session)

    def memory(self):
        return processes.memory(self.session)


@dataclasses.dataclass
class Server:
    """One way to serve a file: `command(place)` gives its words."""
    name: str
    command: object
    export: str = ""
    pid_file: str = ""

    @property
    def is_peer(self):
        return not self.name.startswith((OURS, FLOOR))

    def start(self, place):
        return Running(self, place)


def ours(executable, name=OURS, options=("--cache=writeback",), format="raw"):
    def command(place):
        where = [f"--port={place.port}", "--bind=127.0.0.1"] if place.tcp else [f"--socket={place.socket}"]
        return [executable, "serve", "--persistent", "--shared=0", *options, f"--format={format}", *where, str(place.disk.path)]
    return Server(name, command)


def qemu(aio, cache="writeback", format="raw"):
    def command(place):
        where = [f"--port={place.port}", "--bind=127.0.0.1"] if place.tcp else [f"--socket={place.socket}"]
        return ["qemu-nbd", f"--aio={aio}", "--shared=0", "-t", f"--cache={cache}", "-f", format, *where, str(place.disk.path)]
    return Server(f"qemu-nbd {aio}", command)


def nbdkit(*parameters):
    def command(place):
        where = ["-p", str(place.port), "-i", "127.0.0.1"] if place.tcp else ["-U", str(place.socket)]
        return ["nbdkit", "-f", *where, "file", str(place.disk.path), *parameters]
    return Server("nbdkit file", command)


def nbd_server():
    def command(place):
        where = f"port = {place.port}\nlistenaddr = 127.0.0.1" if place.tcp else f"unixsock = {place.socket}"
        config = place.directory / "nbd-server.conf"
        config.write_text(f"[generic]\n{where}\n[disk]\nexportname = {place.disk.path}\n")
        (place.directory / "nbd-server.pid").unlink(missing_ok=True)
        # Not -d: that serves a single client.
        return ["nbd-server", "-C", str(config), "-p", str(place.directory / "nbd-server.pid")]
    return Server("nbd-server", command, "disk", "nbd-server.pid")


def floor(directory):
    """Compiles Benchmarks/floor.c; nothing when there is no compiler."""
    compiler, program = shutil.which("cc"), pathlib.Path(directory) / "floor"
    if not compiler:
        return []
    source = pathlib.Path(__file__).resolve().parents[1] / "floor.c"
    subprocess.run([compiler, "-O2", "-pthread", "-o", str(program), str(source)], check=True)

    def command(place):
        return [str(program), str(place.disk.size), *(["-p", str(place.port)] if place.tcp else ["-u", str(place.socket)])]
    return [Server(FLOOR, command)]


def everyone(executable):
    return [ours(executable), qemu("threads"), qemu("io_uring"), nbdkit(), nbd_server()]


def present(servers):
    """Those whose program is on this machine; ours is known to be."""
    return [s for s in servers if not s.is_peer or shutil.which(s.name.split()[0])]
