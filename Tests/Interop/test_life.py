"""From the command line to the last signal: readiness, failing starts, orderly and impatient ends."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time

import pytest

import parked
import server as servers
import wire
from images import KIB, MIB, noise
from peers import need, out, run
from wire import ESHUTDOWN, Wire


def serve_once(*words, status, limit=20, **options):
    """A start that has to fail."""
    return run(servers.NBD, "serve", *words, status=status, limit=limit, **options)


class TestReadiness:
    def test_the_pid_file_appears_when_clients_are_welcome(self, serve, disk, directory):
        # S-SRV-10
        pid_file = directory / "pid"
        server = serve(disk, pid_file=pid_file)
        assert int(pid_file.read_text()) == server.process.pid
        Wire(server.uri).go()
        server.stop()
        assert not os.path.exists(pid_file)

    def test_whoever_waits_for_the_pid_file_can_connect(self, start, disk, directory):
        # not to be raced: the file is complete and the socket listens
        for n in range(10):
            path, pid_file = directory / f"s{n}", directory / f"p{n}"
            process = start(servers.NBD, "serve", "--socket", path, "--pid-file", pid_file, disk, await_uri=False)
            while not os.path.exists(pid_file):
                assert process.process.poll() is None, process.err
                time.sleep(0.0005)
            assert int(pid_file.read_text()) == process.process.pid
            with Wire(servers.unix_uri(path)) as link:
                link.go()
            process.stop()

    def test_the_uri_is_printed_when_clients_are_welcome(self, serve, disk):
        # P-URI-08
        server = serve(disk, tcp=["127.0.0.1"], name="a b")
        assert server.uri.endswith("/a%20b")
        with Wire(server.uri) as link:
            link.go()

    def test_a_descriptor_is_told(self, disk, start, directory):
        reader, writer = os.pipe()
        process = start(servers.NBD, "serve", "--socket", directory / "s", "--ready-fd", writer, disk,
                        await_uri=False, pass_fds=(writer,))
        os.close(writer)
        assert os.read(reader, 100)
        with Wire(servers.unix_uri(directory / "s")) as link:
            link.go()
        os.close(reader)
        process.stop()

    def test_systemd_is_told(self, disk, start, directory):
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(str(directory / "notify"))
        notify.settimeout(20)
        process = start(servers.NBD, "serve", "--socket", directory / "s", disk, await_uri=False,
                        env={"NOTIFY_SOCKET": str(directory / "notify")})
        assert b"READY=1" in notify.recv(4096)
        process.stop()
        assert b"STOPPING=1" in notify.recv(4096)

    def test_fork_returns_when_ready(self, disk, directory):
        # S-SRV-10
        path, pid_file = directory / "s", directory / "pid"
        run(servers.NBD, "serve", "--fork", "--socket", path, "--pid-file", pid_file, disk, limit=20)
        pid = int(pid_file.read_text())
        try:
            with Wire(servers.unix_uri(path)) as link:
                link.go()
        finally:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while os.path.exists(path):
            assert time.monotonic() < deadline
            time.sleep(0.02)


class TestSingle:
    """`--single`: the server of one client ends with it, whatever the client was doing."""

    @staticmethod
    def the_abort_option(link):
        link.greet()
        link.ask(wire.ABORT)

    @staticmethod
    def an_unknown_export(link):
        link.greet()
        link.option(wire.EXPORT_NAME, b"gone")
        assert link.is_closed()

    @staticmethod
    def a_goodbye(link):
        link.go()
        link.request(wire.DISC)
        assert link.is_closed()

    PHASES = [*parked.STATES, "the_abort_option", "an_unknown_export", "a_goodbye"]

    @contextlib.contextmanager
    def served(self, disk, *words):
        ours, theirs = socket.socketpair()
        process = subprocess.Popen([servers.NBD, "serve", "--single", *words, str(disk)], stdin=theirs, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        theirs.close()
        ours.settimeout(20)
        try:
            with wire.Wire.over(ours) as link:
                yield process, link
        finally:
            process.kill()
            process.communicate()

    @pytest.mark.parametrize("half", [False, True], ids=["closes", "shuts down"])
    @pytest.mark.parametrize("phase", PHASES)
    def test_ends_when_the_client_leaves_after(self, disk, phase, half):
        with self.served(disk) as (process, link):
            if phase in parked.STATES:
                parked.park(link, phase)
            else:
                getattr(self, phase)(link)
            if half:
                # The client says that nothing more will come, but could still read.
                with contextlib.suppress(OSError):
                    link.link.shutdown(socket.SHUT_WR)
                with contextlib.suppress(TimeoutError, ConnectionResetError):
                    while link.link.recv(MIB):
                        pass
            else:
                link.link.close()
            assert process.wait(servers.STOP_LIMIT) == 0
            assert process.stdout.read() == ""

    def test_ends_when_the_client_says_nothing(self, disk):
        with self.served(disk, "--handshake-limit", "1") as (process, link):
            link.greet()
            assert process.wait(servers.STOP_LIMIT) == 0

    def test_ends_by_a_signal(self, disk):
        with self.served(disk) as (process, link):
            link.go()
            process.send_signal(signal.SIGTERM)
            assert process.wait(servers.STOP_LIMIT) == 0
            assert link.is_closed()


class TestFailingStarts:
    """One line that names what is wrong; nothing is left behind."""

    def one_line(self, done, *parts):
        assert len(done.stderr.splitlines()) == 1, done.stderr
        for part in parts:
            assert str(part) in done.stderr
        assert done.stdout == ""

    def test_no_such_file(self, directory):
        self.one_line(serve_once("--socket", directory / "s", directory / "absent", status=1), directory / "absent")
        assert not os.path.exists(directory / "s")

    def test_a_directory(self, directory):
        self.one_line(serve_once("--socket", directory / "s", directory, status=1), directory)

    def test_a_port_in_use(self, disk):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            self.one_line(serve_once("--bind", "127.0.0.1", "--port", port, disk, status=1), port)

    def test_a_socket_of_a_living_server(self, serve, disk, directory):
        # it keeps its clients
        server = serve("memory:1M")
        self.one_line(serve_once("--socket", server.sockets[0], disk, status=1), server.sockets[0])
        with Wire(server.uri) as link:
            link.go()

    def test_a_file_in_the_place_of_the_socket(self, disk, directory):
        (directory / "precious").write_text("data")
        self.one_line(serve_once("--socket", directory / "precious", disk, status=1), directory / "precious")
        assert (directory / "precious").read_text() == "data"

    def test_a_stale_socket_is_taken_over(self, serve, disk):
        server = serve(disk, check=False)
        server.process.kill()
        server.wait()
        serve(disk, sockets=server.sockets)

    def test_no_place_for_the_pid_file(self, disk, directory):
        done = serve_once("--socket", directory / "s", "--pid-file", "/nowhere/pid", disk, status=1)
        self.one_line(done, "/nowhere/pid")
        assert not os.path.exists(directory / "s")

    @pytest.mark.parametrize("words", [
        [], ["--no-such-option"], ["--port", "70000", "memory:1M"], ["--handshake-limit", "soon", "memory:1M"], ["memory:1X"],
        ["memory:"], ["--default-export", "x", "memory:1M"], ["--export", "name=a,file=", "--export", "name=a,memory=1M"],
    ], ids=lambda words: " ".join(words) or "nothing")
    def test_a_wrong_command_line(self, words):
        done = serve_once(*words, status=64)
        assert done.stderr and done.stdout == ""

    @pytest.mark.parametrize("mode", [0, 0o444], ids=["read", "written"])
    def test_a_file_that_may_not_be(self, disk, directory, mode):
        # Asked for a writable export, it must not become a read-only one in silence.
        os.chmod(disk, mode)
        words = [servers.NBD, "serve", "--socket", directory / "s", disk]
        if os.geteuid() == 0:
            # root may do everything, so somebody else has to try
            os.chmod(directory, 0o777)
            words = [need("setpriv"), "--reuid=65534", "--clear-groups", *words]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
        if "setpriv" in done.stderr:
            pytest.skip("another user may not run the program from here")
        assert done.returncode == 1
        self.one_line(done, disk)


class TestRun:
    def test_gives_the_status_of_the_command(self, disk):
        for status in (0, 1, 7):
            run(servers.NBD, "serve", "--run", f"exit {status}", disk, status=status, limit=20)

    def test_tells_the_command_where_to_connect(self, disk):
        text = out(servers.NBD, "serve", "--run", 'nbdinfo --size "$uri"', disk, limit=20)
        assert text.strip().splitlines()[-1] == str(64 * MIB)

    def test_a_command_that_is_killed(self, disk):
        run(servers.NBD, "serve", "--run", "kill -TERM $$", disk, status=128 + signal.SIGTERM, limit=20)

    def test_a_signal_to_the_server_reaches_the_command(self, start, disk, directory):
        process = start(servers.NBD, "serve", "--run", f"echo $$ > {directory}/child; exec sleep 60", disk, await_uri=False)
        process.wait_for(lambda: (directory / "child").exists() and (directory / "child").read_text().strip(), "the child")
        child = int((directory / "child").read_text())
        process.process.terminate()
        process.wait(15)
        assert not os.path.exists(f"/proc/{child}")


def test_it_goes_with_its_parent(start, disk, directory):
    # a shell starts it and is killed
    path = directory / "s"
    parent = start("sh", "-c", f'"$@" & echo $! > {directory}/child; wait', "sh",
                   servers.NBD, "serve", "--exit-with-parent", "--socket", path, disk, await_uri=False)
    parent.wait_for_socket(path)
    child = int((directory / "child").read_text())
    parent.process.kill()
    deadline = time.monotonic() + 10
    while os.path.exists(path) or re.search(r"State:\s+[^Z]", _status(child)):
        assert time.monotonic() < deadline, "the server outlived its parent"
        time.sleep(0.02)


def _status(pid):
    try:
        return open(f"/proc/{pid}/status").read()
    except OSError:
        return ""


class TestStopping:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_ends_well_by_a_signal(self, serve, disk, number):
        # S-SRV-08
        server = serve(disk)
        Wire(server.uri).go()
        server.stop(signal_number=number)

    def test_idle_clients_do_not_hold_it_up(self, serve, disk):
        # S-SRV-08
        server = serve(disk)
        links = [Wire(server.uri).go() for _ in range(10)]
        strays = [wire.dial(server.uri)[0] for _ in range(10)]  # S-CLI-09, S-NEW-08
        begun = time.monotonic()
        server.stop(limit=8)
        assert time.monotonic() - begun < 5
        for link in links:
            with contextlib.suppress(wire.Closed):
                assert link.is_closed()
        for stray in strays:
            stray.close()

    def test_requests_in_flight_are_answered(self, serve, disk):
        # S-ERR-08, P-TERM-04, P-ERR-08: each with success (and then it is in the file) or with ESHUTDOWN
        server = serve(disk)
        count = 400
        with Wire(server.uri) as link:
            link.go()
            sender = threading.Thread(target=self.flood, args=(link, count))
            sender.start()
            error, cookie = link.simple()
            answers = {cookie: error}
            server.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(wire.Closed):
                while len(answers) < count:
                    error, cookie = link.simple()
                    answers[cookie] = error
            sender.join()
        assert server.wait() == 0 and server.err == ""
        assert set(answers.values()) <= {0, ESHUTDOWN}
        data = disk.read_bytes()
        for cookie, error in answers.items():
            if error == 0:
                assert data[cookie * 64 * KIB:][:64 * KIB] == noise(64 * KIB, cookie)

    @staticmethod
    def flood(link, count):
        with contextlib.suppress(wire.Closed, OSError):
            for n in range(count):
                link.send(Wire.header(wire.WRITE, n * 64 * KIB, 64 * KIB, cookie=n) + noise(64 * KIB, n))

    def test_a_payload_on_its_way_is_waited_for_and_later_requests_are_refused(self, serve, disk):
        # P-TERM-04, S-ERR-08
        server = serve(disk)
        with Wire(server.uri) as link:
            link.go()
            link.request(wire.WRITE, 0, MIB, data=bytes(MIB - 1))
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            try:
                link.send(b"\0" + Wire.header(wire.READ, 0, 512, cookie=2))
                answers = {cookie: error for error, cookie in (link.simple(), link.simple())}
                assert answers[1] in (0, ESHUTDOWN) and answers[2] == ESHUTDOWN
            except wire.Closed:
                pytest.fail("closed on a client that was in the middle of a request")
        assert server.wait() == 0

    def test_a_stalled_payload_does_not_hold_it_up_for_ever(self, serve, disk):
        server = serve(disk, extra=["--drain-limit", "2"], stderr=None)
        with Wire(server.uri) as link:
            link.go()
            link.request(wire.WRITE, 0, MIB, data=bytes(1000))
            time.sleep(0.2)
            begun = time.monotonic()
            server.stop(stderr=None, status=0)
            assert time.monotonic() - begun < 6

    def test_a_second_signal_does_not_wait(self, serve, disk):
        server = serve(disk, check=False)
        with Wire(server.uri) as link:
            link.go()
            link.request(wire.WRITE, 0, MIB, data=bytes(1000))
            time.sleep(0.2)
            begun = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            server.wait(8)
            assert time.monotonic() - begun < 5
            assert not os.path.exists(server.sockets[0])

    def test_options_during_the_stop(self, serve, disk):
        # P-OPT-13, P-TERM-06, S-OPT-11: ERR_SHUTDOWN or the end, never a new client
        server = serve(disk, extra=["--drain-limit", "3"], check=False)
        with Wire(server.uri) as holder, Wire(server.uri) as late:
            holder.go()
            late.greet()
            holder.request(wire.WRITE, 0, MIB, data=bytes(1000))
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            with contextlib.suppress(wire.Closed):
                assert late.ask(wire.GO, Wire.info_data(""))[-1][0] == wire.SHUTDOWN
        server.wait()

    def test_what_was_flushed_survives_a_kill(self, serve, disk):
        # P-CMD-FLUSH-1
        server = serve(disk, check=False)
        with Wire(server.uri) as link:
            link.go()
            data = noise(MIB)
            assert link.call(wire.WRITE, 0, MIB, data=data) == 0
            assert link.call(wire.FLUSH) == 0
            server.process.kill()
        server.wait()
        assert disk.read_bytes()[:MIB] == data


class TestHelpers:
    """What makes the command line pleasant."""

    def test_bash_completes_options(self, directory):
        script = directory / "completion"
        script.write_text(out(servers.NBD, "--generate-completion-script", "bash"))
        words = out(need("bash"), "-c", f"""
            source {script}
            COMP_WORDS=(nbd serve --conn) COMP_CWORD=2 COMP_LINE='nbd serve --conn' COMP_POINT=16
            _nbd nbd --conn serve
            echo "${{COMPREPLY[@]}}" """)
        assert words == "--connection-memory-limit\n"

    def test_trace_points_are_listed(self):
        names = out(servers.NBD, "serve", "--trace", "help").split()
        assert "nbd_receive_request" in names and len(set(names)) == len(names) > 20

    def test_trace_patterns_come_from_a_file(self, serve, disk, directory):
        # S-TRC-01; a pattern for nothing is told, and where it stands
        events, log = directory / "events", directory / "log"
        events.write_text("# what we want\nnbd_negotiate_*\n-*_begin\nnbd_nothing\n")
        server = serve(disk, extra=["--trace", f"events={events},file={log}"], stderr="nbd_nothing")
        with Wire(server.uri) as link:
            assert link.go().read(0, 512)[0] == 0
        server.stop(stderr=f"warning: {events}:4: .*'nbd_nothing'")
        text = log.read_text()
        assert "nbd_negotiate_success" in text and "_begin" not in text and "nbd_receive_request" not in text
