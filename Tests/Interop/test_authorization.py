"""Who may do what: rules on the command line against real clients, and what strangers see of it."""

import json
import os
import socket
import ssl
import subprocess

import pytest

import server as servers
import wire
from encrypted import X509, tls_wire
from images import MIB
from peers import need, out, run
from wire import Wire


def exports(uri):
    return [export["export-name"] for export in json.loads(out("nbdinfo", "--json", "--list", uri))["exports"]]


@pytest.fixture
def disks(directory):
    words = []
    for name in ("disk", "backup-1", "backup-2"):
        path = directory / name
        with open(path, "wb") as file:
            file.truncate(MIB)
        words += ["--export", f"name={name},file={path}"]
    return words


def with_export(server, name):
    return servers.unix_uri(server.sockets[0], name)


class TestRules:
    def test_by_unix_user(self, serve, disks):
        need("nbdinfo")
        server = serve(extra=[*disks, "--allow", f"from=unix,uid={os.getuid()},export=backup-*,may=list+read"], stderr="refused by the server's rules")
        assert exports(server.uri) == ["backup-1", "backup-2"]
        info = json.loads(out("nbdinfo", "--json", with_export(server, "backup-1")))["exports"][0]
        assert info["is_read_only"] and not info["can_trim"] and not info["can_zero"]
        assert info["contexts"] == []
        # It does not exist, in the same words as one that does not.
        refused = [run("nbdinfo", with_export(server, name), status=1).stderr.replace(name, "X") for name in ("disk", "dusk")]
        assert refused[0] == refused[1]

    def test_of_another_user_let_nobody_in(self, serve, disks):
        server = serve(extra=[*disks, "--allow", f"uid={os.getuid() + 1},may=all"], stderr="not let in by the server's rules")
        link, _ = wire.dial(server.uri)
        with link:
            assert link.recv(1) == b""

    @pytest.mark.parametrize("policy", ["required", "optional"])
    def test_greet_nobody_whom_tls_could_not_help(self, serve_tls, pki, disks, policy):
        # Before the greeting, though TLS is on: the user behind the socket is known, and no rule is about it.
        rules = ["--allow", f"uid={os.getuid() + 1},tls-dn=O=Example,,CN=client,may=all"]
        server = serve_tls(X509, "--tls", policy, *disks, *rules, images=[], stderr="not let in by the server's rules")
        link, _ = wire.dial(server.uri)
        with link:
            assert link.recv(1) == b""

    def test_by_what_tls_proves(self, serve_tls, pki, disks):
        # Greeted, since more may be known of them soon; cut once it is.
        rules = ["--allow", f"uid={os.getuid()},tls-dn=O=Example,,CN=client,may=all"]
        server = serve_tls(X509, *disks, *rules, images=[], stderr="not let in by the server's rules")
        with tls_wire(server.uri, pki.client) as link:
            assert link.choose(name="disk").read(0, 4) == (0, bytes(4))
        other = pki.directory("other-name", client=pki.sign_client("another"))
        with tls_wire(server.uri, other) as link, pytest.raises((wire.Closed, ssl.SSLError, ConnectionError)):
            link.ask(wire.LIST)

    def test_that_leave_nothing_end_with_the_handshake_of_tls(self, serve_tls, pki, disks):
        # S-TLS-07: not at the end of the time for handshakes
        server = serve_tls(X509, *disks, "--allow", "may=all", "--deny", "tls-dn=*,,CN=client", images=[], handshake_limit=60,
                           stderr="not let in by the server's rules")
        with tls_wire(server.uri, pki.client, timeout=10) as link, pytest.raises((wire.Closed, ssl.SSLError, ConnectionError)):
            link.receive(1)
        server.wait_for(lambda: "tls-dn=O=Example,CN=client" in server.err, "who that was in the log")
        other = pki.directory("not-denied", client=pki.sign_client("another"))
        with tls_wire(server.uri, other) as link:
            assert link.choose(name="disk").read(0, 4) == (0, bytes(4))

    @pytest.mark.parametrize("key, own", [("gid", os.getegid), ("pid", os.getpid)])
    def test_by_group_and_process(self, serve, disks, key, own):
        # Ours is let in; a program that we start has another pid, and no rule is about another group.
        server = serve(extra=[*disks, "--allow", f"{key}={own()},export=disk,may=read"], stderr=None)
        with Wire(with_export(server, "disk")) as link:
            link.go()
            assert link.read(0, 4) == (0, bytes(4))
        assert subprocess.run([need("nbdinfo"), with_export(server, "disk")], capture_output=True).returncode == (0 if key == "gid" else 1)
        server.stop(stderr=None)
        server = serve(extra=[*disks, "--allow", f"{key}={own() + 1},export=disk,may=read"], stderr="not let in by the server's rules")
        link, _ = wire.dial(server.uri)
        with link:
            assert link.recv(1) == b""
        server.wait_for(lambda: f"{key}={own()} " in server.err and f"uid={os.getuid()}" in server.err, "who that was in the log")

    def test_by_a_user_that_is_another(self, serve, disks, directory):
        if os.getuid() != 0:
            pytest.skip("needs root to become another user")
        directory.chmod(0o755)
        server = serve(extra=[*disks, "--allow", "uid=65534,may=list+read"], stderr="not let in by the server's rules")
        os.chmod(server.sockets[0], 0o777)
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "nbdinfo", "--list", "--json", server.uri]
        assert len(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["exports"]) == 3
        assert subprocess.run(command[4:], capture_output=True).returncode != 0

    # S-CVE-12: a prefix of the text is not a prefix of the address
    @pytest.mark.parametrize("network,is_in", [("127.0.0.0/8", True), ("127.0.0.1", True), ("127.0.0.10", False), ("10.0.0.0/8", False),
                                               ("::/0", False), ("0.0.0.0/0", True)])
    def test_by_address(self, serve, disks, network, is_in):
        server = serve(tcp=["127.0.0.1"], extra=[*disks, "--allow", f"from={network},may=all"], stderr=None)
        link, _ = wire.dial(server.uri)
        with link:
            assert (link.recv(18) != b"") == is_in

    def test_by_an_ipv4_address_in_the_clothes_of_ipv6(self, serve, disks):
        server = serve(tcp=["::"], extra=[*disks, "--allow", "may=all", "--deny", "from=127.0.0.0/8"], stderr=None)
        for host, is_in in (("127.0.0.1", False), ("::1", True)):
            with socket.create_connection((host, server.port), timeout=10) as link:
                assert (link.recv(18) != b"") == is_in

    def test_of_writing_and_trimming(self, serve, disks):
        server = serve(extra=[*disks, "--allow", "export=disk,may=write"], stderr=None)
        with Wire(with_export(server, "disk")) as link:
            link.go()
            assert link.call(wire.WRITE, 0, 512, data=bytes(512)) == 0
            assert link.call(wire.TRIM, 0, 512) == wire.EPERM
            assert link.call(wire.ZEROES, 0, 512) == wire.EPERM
            assert link.call(wire.FLUSH) == 0
