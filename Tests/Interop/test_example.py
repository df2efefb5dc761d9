"""The twenty-line program of the README, compiled, serves an actor as a disk."""

import os
import pathlib
import signal
import subprocess
import time

import nbd
import pytest

EXAMPLE = pathlib.Path(__file__).parents[2] / ".build/release/ServeActor"


def test_serve_actor(tmp_path):
    if not EXAMPLE.exists():
        assert not os.environ.get("CI"), f"{EXAMPLE} was not built"
        pytest.skip(f"{EXAMPLE} was not built")
    socket = tmp_path / "s"
    server = subprocess.Popen([EXAMPLE, socket], stdout=subprocess.PIPE, text=True)
    try:
        uri = f"nbd+unix:///scratch?socket={socket}"
        for _ in range(200):
            if socket.exists():
                break
            time.sleep(0.05)
        client = nbd.NBD()
        client.connect_uri(uri)
        assert client.get_size() == 1 << 20
        client.pwrite(b"hello", 1000)
        assert client.pread(7, 999) == b"\0hello\0"
        client.zero(3, 1001)
        assert client.pread(5, 1000) == b"h\0\0\0o"
        client.shutdown()
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0
        assert server.stdout.read().strip() == uri
    finally:
        server.kill()
        server.wait()
