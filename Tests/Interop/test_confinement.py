"""What the process may still do once it serves: another user, no files but its own."""

import contextlib
import ctypes
import json
import os
import pathlib
import pwd
import shutil
import signal
import ssl
import subprocess

import pytest

import server as servers
import wire
from encrypted import X509, server_serial, tls_wire
from peers import run
from wire import Wire

root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")


def has_landlock():
    return ctypes.CDLL(None, use_errno=True).syscall(444, None, 0, 1) > 0


landlock = pytest.mark.skipif(not has_landlock(), reason="this kernel has no Landlock")


def threads(server):
    """What the kernel says of each thread."""
    for task in pathlib.Path(f"/proc/{server.process.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)


@pytest.fixture
def open_directory(directory):
    """One that another user may come to."""
    directory.chmod(0o777)
    return directory


@root
class TestUser:
    def test_all_threads_are_somebody_else_with_nothing_left(self, serve, disk, open_directory):
        server = serve(disk, extra=["--user", "65534", "--group", "65533"])
        with Wire(server.uri) as link:
            assert link.go().call(wire.WRITE, 0, 512, data=bytes(512)) == 0
            for thread in threads(server):
                assert thread["Uid"].split() == ["65534"] * 4
                assert thread["Gid"].split() == ["65533"] * 4
                assert thread["Groups"].split() in ([], ["65533"])
                assert int(thread["CapEff"], 16) == int(thread["CapPrm"], 16) == 0

    def test_by_name(self, serve, disk, open_directory):
        nobody = pwd.getpwnam("nobody")
        server = serve(disk, extra=["--user", "nobody"])
        assert {t["Uid"].split()[0] for t in threads(server)} == {str(nobody.pw_uid)}
        assert {t["Gid"].split()[0] for t in threads(server)} == {str(nobody.pw_gid)}

    def test_happens_after_binding_and_opening(self, start, disk, directory):
        # The image, the pid file and the port are root's alone.
        disk.chmod(0o600)
        directory.chmod(0o755)
        os.chown(disk, 0, 0)
        server = start(servers.NBD, "serve", "-b", "127.0.0.1", "-p", "809", "--user", "nobody", "--pid-file", directory / "pid", disk)
        with Wire(server.uri) as link:
            assert link.go().read(0, 4) == (0, bytes(4))
        server.stop(stderr=None)

    @pytest.mark.parametrize("words,text", [(["--user", "no-such-user"], "no user"), (["--group", "no-such-group"], "no group"),
                                            (["--user", "4000000000"], "--group")])
    def test_that_is_unknown_is_an_error(self, disk, directory, words, text):
        done = run(servers.NBD, "serve", "--socket", directory / "s", *words, disk, status=64)
        assert text in done.stderr
        assert not os.path.exists(directory / "s")

    def test_runs_the_command_as_that_user(self, disk, open_directory):
        done = run(servers.NBD, "serve", "--user", "nobody", "--run", "id -u", disk)
        assert int(done.stdout) == pwd.getpwnam("nobody").pw_uid


def test_another_user_needs_root(disk, directory):
    words = [servers.NBD, "serve", "--socket", directory / "s", "--user", "nobody", disk]
    if os.getuid() == 0:
        directory.chmod(0o777)
        words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *words]
    assert "need root" in run(*words, status=1).stderr


@landlock
class TestSandbox:
    def test_is_on_for_all_threads(self, serve, disk):
        server = serve(disk)
        with Wire(server.uri) as link:
            assert link.go().call(wire.WRITE, 0, 512, data=bytes(512)) == 0
            found = [thread["NoNewPrivs"] for thread in threads(server)]
            assert len(found) > 1 and set(found) == {"1"}

    def test_keeps_few_powers(self, serve, disk):
        # Neither those that show others' secrets in /proc, nor those that Landlock knows nothing of: chown, raw sockets, kernel modules
        server = serve(disk)
        kept = 1 << 1 | 1 << 2 | 1 << 14 | 1 << 24  # CAP_DAC_OVERRIDE, _DAC_READ_SEARCH, _IPC_LOCK, _SYS_RESOURCE
        assert not any(int(thread[key], 16) & ~kept for thread in threads(server) for key in ("CapEff", "CapPrm", "CapInh"))

    def test_leaves_the_thread_pool_alive(self, directory):
        """libdispatch ends a process that cannot look after its workers in /proc: after a second with more work than threads."""
        sources = pathlib.Path(__file__).parents[2] / "Sources" / "CHostIO"
        program = directory / "pool"
        run("clang", "-c", f"-I{sources}/include", f"-I{sources}", sources / "CConfinement.c", "-o", directory / "confinement.o")
        run("swiftc", "-import-objc-header", sources / "include" / "CConfinement.h", pathlib.Path(__file__).parent / "confined_pool.swift",
            directory / "confinement.o", "-o", program)
        assert run(program).stdout == "alive\n"

    def test_can_be_off(self, serve, disk):
        server = serve(disk, extra=["--sandbox", "off"])
        assert {thread["NoNewPrivs"] for thread in threads(server)} == {"0"}

    def test_can_be_required(self, serve, disk):
        server = serve(disk, extra=["--sandbox", "require"])
        assert {thread["NoNewPrivs"] for thread in threads(server)} == {"1"}

    def test_leaves_the_command_alone(self, disk):
        done = run(servers.NBD, "serve", "--sandbox", "require", "--run",
                   'grep NoNewPrivs /proc/self/status; nbdinfo --size "$uri"', disk)
        assert done.stdout.split() == ["NoNewPrivs:", "0", str(64 << 20)]

    def test_works_in_the_background(self, disk, directory):
        path, pid_file = directory / "s", directory / "pid"
        run(servers.NBD, "serve", "--fork", "--sandbox", "require", "--socket", path, "--pid-file", pid_file, disk)
        pid = int(pid_file.read_text())
        try:
            with Wire(servers.unix_uri(path)) as link:
                assert link.go().read(0, 4) == (0, bytes(4))
        finally:
            os.kill(pid, signal.SIGTERM)
        deadline = 200
        while (os.path.exists(path) or os.path.exists(pid_file)) and deadline:
            deadline -= 1
            subprocess.run(["sleep", "0.05"])
        assert not os.path.exists(path) and not os.path.exists(pid_file), "its own files can be taken away"

    @root
    def test_goes_with_another_user(self, serve, disk, open_directory):
        server = serve(disk, extra=["--user", "nobody", "--sandbox", "require"])
        with Wire(server.uri) as link:
            assert link.go().call(wire.WRITE, 0, 512, data=bytes(512)) == 0
        assert {thread["NoNewPrivs"] for thread in threads(server)} == {"1"}

    @pytest.mark.parametrize("aio", ["threads", "io_uring"])
    @pytest.mark.parametrize("cache", ["writeback", "none"])
    def test_is_no_hindrance_to_work(self, serve, disk, aio, cache):
        server = serve(disk, extra=["--aio", aio, "--cache", cache, "--sandbox", "require"], stderr="served by threads")
        with Wire(server.uri) as link:
            link.go(structured=True, contexts=["base:allocation"])
            for command in (wire.WRITE, wire.ZEROES, wire.TRIM, wire.FLUSH, wire.CACHE, wire.STATUS):
                data = b"x" * 65536 if command == wire.WRITE else b""
                assert link.call(command, 0, 0 if command == wire.FLUSH else 65536, data=data) == 0, command


@pytest.mark.skipif(has_landlock(), reason="this kernel has Landlock")
def test_a_sandbox_that_is_required_must_be_there(disk, directory):
    assert "no Landlock" in run(servers.NBD, "serve", "--socket", directory / "s", "--sandbox", "require", disk, status=1).stderr


@landlock
class TestReadingAgain:
    """What the sandbox must leave within reach: credentials (SIGHUP), and the list of who may come in."""

    @pytest.fixture
    def credentials(self, pki, directory):
        """A directory of this test's own, and the serial number of the certificate in it."""
        path = directory / "credentials"
        shutil.copytree(pki.server, path)
        return path

    @staticmethod
    def renewed(pki, server, renew):
        """Whether new connections get a new certificate once `renew(pair)` has put it in its place."""
        before = server_serial(server.uri, pki.client)
        old = tls_wire(server.uri, pki.client)
        old.choose()
        renew(pki.sign_server())
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: "read again" in server.err, "a word about the signal")
        assert "not read again" not in server.err, server.err
        assert old.read(0, 512) == (0, bytes(512)), "who was there before stays"
        old.link.close()
        return server_serial(server.uri, pki.client) != before

    @pytest.mark.parametrize("how", ["in place", "by rename"])
    def test_certificates(self, serve_tls, pki, credentials, how):
        def renew(pair):
            for name, source in zip(("server-cert.pem", "server-key.pem"), pair):
                if how == "in place":
                    (credentials / name).write_bytes(pathlib.Path(source).read_bytes())
                else:
                    shutil.copy(source, credentials / "draft")
                    os.rename(credentials / "draft", credentials / name)

        assert self.renewed(pki, serve_tls(X509, "--sandbox", "require", directory=credentials), renew)

    def test_a_pipe_without_a_writer_holds_up_neither_clients_nor_signals(self, serve_tls, pki, credentials):
        server = serve_tls(X509, directory=credentials)
        serial = server_serial(server.uri, pki.client)
        (credentials / "server-key.pem").unlink()
        os.mkfifo(credentials / "server-key.pem")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: "not read again" in server.err, "a word about the pipe")
        assert server_serial(server.uri, pki.client) == serial
        server.stop(stderr="not read again")

    @pytest.mark.parametrize("where", ["inside", "outside"])
    def test_certificates_behind_links(self, serve_tls, pki, directory, credentials, where):
        # As a cluster mounts a secret (…/NAME -> ..data/NAME, ..data -> ..VERSION), and as certbot keeps certificates (live/NAME -> ../archive/NAME1)
        store = credentials if where == "inside" else directory / "store"
        store.mkdir(exist_ok=True)

        def renew(pair, version="..2"):
            (store / version).mkdir()
            for name, source in zip(("server-cert.pem", "server-key.pem"), pair):
                shutil.copy(source, store / version / name)
            (store / "draft").symlink_to(version)
            os.rename(store / "draft", store / "..data")

        renew((pki.server / "server-cert.pem", pki.server / "server-key.pem"), "..1")
        for name in ("server-cert.pem", "server-key.pem"):
            (credentials / name).unlink()
            if where == "outside":
                (store / name).symlink_to(f"..data/{name}")
            (credentials / name).symlink_to(f"..data/{name}" if where == "inside" else f"../store/{name}")
        assert self.renewed(pki, serve_tls(X509, "--sandbox", "require", directory=credentials), renew)

    # A list behind a link in its own directory, to a file outside of it, and to a mounted secret outside of it
    @pytest.mark.parametrize("layout", ["inside", "outside", "absolute", "mounted"])
    def test_the_list_of_who_may_come_in_behind_links(self, serve_tls, pki, directory, layout):
        place, store = directory / "authz", directory / "store"
        place.mkdir()
        store.mkdir()
        path = place / "list.json"

        def write(target, names):
            target.parent.mkdir(exist_ok=True)
            draft = target.parent / "draft"
            draft.write_text(json.dumps({"rules": [{"match": name, "policy": "allow"} for name in names]}))
            os.rename(draft, target)

        first = {"inside": place / "..1" / "list.json", "mounted": store / "..1" / "list.json"}.get(layout, store / "list.json")
        write(first, ["O=Example,CN=somebody"])
        if layout == "inside":
            (place / "..data").symlink_to("..1")
            path.symlink_to("..data/list.json")
        elif layout == "mounted":
            (store / "..data").symlink_to("..1")
            (store / "list.json").symlink_to("..data/list.json")
            path.symlink_to("../store/list.json")
        else:
            path.symlink_to(first if layout == "absolute" else "../store/list.json")
        server = serve_tls(X509, "--object", f"authz-list-file,id=who,filename={path}", "--tls-authz", "who", "--sandbox", "require")
        turned_away(server, pki.client)
        if layout in ("inside", "mounted"):
            parent = place if layout == "inside" else store
            write(parent / "..2" / "list.json", ["O=Example,CN=client"])
            (parent / "draft").symlink_to("..2")
            os.rename(parent / "draft", parent / "..data")
        else:
            write(first, ["O=Example,CN=client"])
        server.wait_for(lambda: "again" in server.err, "a word about the list")
        assert "cannot read" not in server.err, server.err
        with tls_wire(server.uri, pki.client) as link:
            assert link.choose().read(0, 4) == (0, bytes(4))

    def test_a_link_that_leads_elsewhere_later_is_told(self, serve_tls, pki, directory):
        # Out of reach by then: the list from before stays, and the log says so.
        path, store = directory / "list.json", directory / "store"
        store.mkdir()
        place = directory / "authz"
        place.mkdir()
        path = place / "list.json"
        text = json.dumps({"rules": [{"match": "O=Example,CN=client", "policy": "allow"}]})
        path.write_text(text)
        server = serve_tls(X509, "--object", f"authz-list-file,id=who,filename={path}", "--tls-authz", "who", "--sandbox", "require")
        (store / "list.json").write_text(text)
        (place / "draft").symlink_to(store / "list.json")
        os.rename(place / "draft", path)
        server.wait_for(lambda: "the one from before stays" in server.err and str(path) in server.err, "a complaint")
        with tls_wire(server.uri, pki.client) as link:
            assert link.choose().read(0, 4) == (0, bytes(4))


def turned_away(server, directory):
    """Cut off once TLS is up."""
    link = tls_wire(server.uri, directory)
    with link, pytest.raises((wire.Closed, ssl.SSLError, ConnectionError)):
        link.ask(wire.LIST)
