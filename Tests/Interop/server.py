"""One server process: started, awaited until it listens, and ended as a user would end it.

The only place that knows how `nbd serve` spells its options: see `Options.arguments`.
"""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import quote

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
NBD = os.path.abspath(os.environ.get("NBD", REPOSITORY / ".build/release/nbd"))

# Seconds. Generous: the machine may be building something else at the same time.
READY_LIMIT = 20
STOP_LIMIT = 20

# What a client that breaks the rules leaves in the log.
CUT_OFF = "connection closed: "


@dataclass
class Options:
    """What a test wants of `nbd serve`; spelled out by `arguments`."""

    images: list = field(default_factory=list)
    name: str | None = None
    description: str | None = None
    read_only: bool = False
    sockets: list = field(default_factory=list)
    tcp: list = field(default_factory=list)  # hosts
    port: int = 0
    pid_file: str | None = None
    handshake_limit: float | None = None
    connections: int | None = None
    print_uri: bool = True
    extra: list = field(default_factory=list)

    def arguments(self):
        words = []
        for path in self.sockets:
            words += ["--socket", str(path)]
        for host in self.tcp:
            words += ["--bind", host]
        if self.tcp:
            words += ["--port", str(self.port)]
        if self.name is not None:
            words += ["--export-name", self.name]
        if self.description is not None:
            words += ["--description", self.description]
        if self.read_only:
            words += ["--read-only"]
        if self.pid_file:
            words += ["--pid-file", str(self.pid_file)]
        if self.handshake_limit is not None:
            words += ["--handshake-limit", str(self.handshake_limit)]
        if self.connections is not None:
            words += ["--max-connections", str(self.connections)]
        if self.print_uri:
            words += ["--print-uri"]
        # The whole suite can be run on either face of the server.
        if "NBD_FAST_PATH" in os.environ:
            words += ["--fast-path", os.environ["NBD_FAST_PATH"]]
        return ["serve", *words, *map(str, self.extra), *map(str, self.images)]


def unix_uri(path, export=""):
    return f"nbd+unix:///{quote(export, safe='')}?socket={path}"


class Server:
    """A running server. `uri` reaches its (first) export on its (first) listener."""

    def __init__(self, argv, *, env=None, cwd=None, preexec=None, await_uri=True, pass_fds=()):
        self.argv = [str(word) for word in argv]
        self.process = subprocess.Popen(
            self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})}, cwd=cwd, preexec_fn=preexec, pass_fds=pass_fds)
        self.sockets = []
        self._out, self._err = [], []
        self._readers = [
            threading.Thread(target=self._collect, args=(self.process.stdout, self._out), daemon=True),
            threading.Thread(target=self._collect, args=(self.process.stderr, self._err), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self.uri = None
        if await_uri:
            # Printed when the server listens, not before.
            self.uri = self.wait_for(lambda: self.uris[0] if self.uris else None, "a URI on standard output")

    @staticmethod
    def _collect(stream, lines):
        for line in stream:
            lines.append(line.decode(errors="replace"))

    @property
    def out(self):
        return "".join(self._out)

    @property
    def err(self):
        return "".join(self._err)

    @property
    def uris(self):
        # Complete lines only: a URI still being written must not be taken for a shorter one.
        text = "".join(line for line in self._out if line.endswith("\n"))
        return re.findall(r"nbds?(?:\+\w+)?://\S+", text)

    @property
    def port(self):
        return int(re.search(r":(\d+)(?:/|$)", self.uri.split("://", 1)[1]).group(1))

    def wait_for(self, condition, what, limit=READY_LIMIT):
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            value = condition()
            if value:
                return value
            if self.process.poll() is not None:
                self._join()
                value = condition()
                if value:
                    return value
                raise AssertionError(
                    f"{self.argv} ended with {self.process.returncode} before {what}; stderr: {self.err!r}")
            time.sleep(0.01)
        self.kill()
        raise AssertionError(f"{self.argv}: no {what} within {limit} s; stdout {self.out!r} stderr {self.err!r}")

    def wait_for_socket(self, path):
        self.wait_for(lambda: os.path.exists(path), f"socket {path}")

    def _join(self):
        for reader in self._readers:
            reader.join(timeout=5)

    def wait(self, limit=STOP_LIMIT):
        """The exit status, once it ends by itself."""
        try:
            status = self.process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.argv} still ran after {limit} s; stderr: {self.err!r}") from None
        self._join()
        return status

    def stop(self, *, signal_number=signal.SIGTERM, status=0, stderr="", limit=STOP_LIMIT):
        """Ends it and checks the manners of its end: status, silence, no socket file left behind.

        `stderr`: a regular expression that every line on standard error must match; empty means no line at all; None: anything.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        assert self.wait(limit) == status, f"{self.argv}: status {self.process.returncode}; stderr: {self.err!r}"
        for path in self.sockets:
            assert not os.path.exists(path), f"{path} was left behind"
        for line in self.err.splitlines() if stderr is not None else ():
            assert stderr and re.search(stderr, line), f"unexpected words on stderr: {line!r}"

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._join()

    # What the kernel says about the process (Linux).

    def memory(self):
        """Resident bytes, and the highest they have been."""
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        kib = {key: int(value) for key, value in re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", text)}
        return kib["VmRSS"] * 1024, kib["VmHWM"] * 1024

    def descriptors(self):
        """How many it has open, without timers: the clock of its tasks opens one when it first ticks, at times after
        the server is ready."""
        count = 0
        for name in os.listdir(f"/proc/{self.process.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                count += "timerfd" not in os.readlink(f"/proc/{self.process.pid}/fd/{name}")
        return count

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
