"""TLS: other people's clients on our server, our client on other people's servers, and everybody who must be turned away."""

import json
import os
import re
import signal
import ssl
import subprocess
import time

import pytest

import wire
from encrypted import KINDS, PSK, X509, X509_ANY, client_context, client_uri, qemu_options, server_options, start_tls, tls_wire, upgrade
from peers import missing, need, out, run
from pki import psk_directory
from server import NBD

# What a refused client leaves in the log.
REFUSED = "connection closed: "


# Other people's clients


@pytest.mark.parametrize("where", ["tcp", "unix"])
@pytest.mark.parametrize("kind", KINDS)
class TestClients:
    # S-TLS-04, S-TLS-09, S-TLS-14, P-TLS-13, P-TLS-14, P-GEN-05
    def start(self, serve_tls, kind, where):
        server = serve_tls(kind, **({"tcp": ["127.0.0.1"]} if where == "tcp" else {}))
        assert server.uri.startswith("nbds")
        if where == "tcp":
            server.uri = server.uri.replace("127.0.0.1", "localhost")
        return server

    def test_nbdinfo(self, serve_tls, pki, kind, where):
        server = self.start(serve_tls, kind, where)
        text = out(need("nbdinfo"), client_uri(pki, server.uri, kind))
        assert "newstyle-fixed with TLS, using structured packets" in text
        assert "export-size: 67108864" in text

    def test_nbdcopy_both_ways(self, serve_tls, pki, kind, where, directory):
        server = self.start(serve_tls, kind, where)
        source, back = directory / "source", directory / "back"
        source.write_bytes(os.urandom(3 << 20) + bytes(61 << 20))
        uri = client_uri(pki, server.uri, kind)
        run(need("nbdcopy"), "--flush", source, uri)
        run(need("nbdcopy"), uri, back)
        assert source.read_bytes() == back.read_bytes()

    def test_qemu_io_and_qemu_img(self, serve_tls, pki, kind, where, directory):
        server = self.start(serve_tls, kind, where)
        options = qemu_options(pki, server, kind)
        out(need("qemu-io"), *options, "-c", "write -P 0x5a 1M 4M", "-c", "read -P 0x5a 1M 4M", "-c", "flush", "-c", "discard 8M 1M")
        run(need("qemu-img"), "convert", *options, "-O", "raw", directory / "copy")
        copy = (directory / "copy").read_bytes()
        assert copy[1 << 20:5 << 20] == b"\x5a" * (4 << 20) and len(copy) == 64 << 20

    def test_our_own(self, serve_tls, pki, kind, where):
        server = self.start(serve_tls, kind, where)
        text = out(NBD, "info", client_uri(pki, server.uri, kind))
        assert "with TLS" in text and "export-size: 67108864" in text
        if kind == PSK:
            words = ["--object", f"tls-creds-psk,id=c,dir={pki.psk},username=alice"]
        else:
            words = ["--object", f"tls-creds-x509,id=c,dir={pki.client if kind == X509 else pki.bare}"]
        listed = out(NBD, "list", "--json", *words, "--tls-creds", "c", server.uri.replace("nbds", "nbd", 1))
        assert '"TLS": true' in listed and '"uri": "nbds' in listed
        run(NBD, "info", "--is", "tls", *words, "--tls-creds", "c", server.uri)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_both_versions_of_tls(serve_tls, pki, version):
    # P-TLS-01
    server = serve_tls()
    with tls_wire(server.uri, pki.client, version=version) as link:
        assert link.link.version() == {ssl.TLSVersion.TLSv1_2: "TLSv1.2", ssl.TLSVersion.TLSv1_3: "TLSv1.3"}[version]
        link.choose()
        assert link.read(0, 512) == (0, bytes(512))


def test_older_versions_are_refused(serve_tls, pki):
    # P-TLS-01
    server = serve_tls()
    context = client_context(pki.client)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        upgrade(server.uri, context)
    server.wait_for(lambda: REFUSED in server.err, "a word in the log")


def test_psk_with_gnutls_alone(serve_tls, pki):
    # P-TLS-14: BoringSSL has keys in TLS 1.2 only; a client that insists on 1.3 is refused, which docs/tls.md says.
    server = serve_tls(PSK)
    uri = client_uri(pki, server.uri, PSK)
    assert "with TLS" in out(need("nbdinfo"), uri)
    insisting = [
        "--object", f"tls-creds-psk,id=tls0,dir={pki.psk},endpoint=client,username=alice,priority=NORMAL:-VERS-ALL:+VERS-TLS1.3",
        "--image-opts", f"driver=nbd,server.type=unix,server.path={server.sockets[0]},tls-creds=tls0"]
    done = subprocess.run([need("qemu-img"), "info", *insisting], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "TLS handshake failed" in done.stderr, done.stderr
    server.wait_for(lambda: "TLS: the handshake failed" in server.err, "a word in the log")
    # The same words without that: it is the version that is refused.
    willing = [word.replace(":-VERS-ALL:+VERS-TLS1.3", "") for word in insisting]
    assert "virtual size: 64 MiB" in out(need("qemu-img"), "info", *willing)
    server.stop(stderr=None)


# By hand


def refused(link):
    """The server has hung up: no answer, no ERR."""
    try:
        link.send(struct_list())
        link.receive(1)
    except (wire.Closed, ssl.SSLError, ConnectionError):
        return True
    return False


def struct_list():
    return b"IHAVEOPT" + bytes([0, 0, 0, 3, 0, 0, 0, 0])


def test_clear_before_tls_is_only_told_to_encrypt(serve_tls):
    # S-TLS-02, S-TLS-01, P-TLS-05, S-ABRT-03
    server = serve_tls()
    with wire.Wire(server.uri) as link:
        link.greet()
        for option in (wire.LIST, wire.INFO, wire.GO, wire.STRUCTURED, wire.LIST_META, 77):
            assert link.ask(option, b"x" * 40)[-1][0] == wire.TLS_REQD
        assert link.ask(wire.ABORT)[-1][0] == wire.ACK
        assert link.is_closed()
    with wire.Wire(server.uri) as link:
        link.greet()
        link.option(wire.EXPORT_NAME, b"")
        assert link.is_closed()
    # S-HS-13
    with wire.Wire(server.uri) as link:
        link.greet(flags=0)
        link.option(wire.EXPORT_NAME, b"")
        assert link.is_closed()


def test_data_with_starttls_ends_the_connection(serve_tls):
    # S-TLS-03, P-TLS-09
    server = serve_tls()
    with wire.Wire(server.uri) as link:
        link.greet()
        assert link.ask(wire.STARTTLS, b"abc")[-1][0] == wire.INVALID
        assert link.is_closed()


def test_starttls_twice(serve_tls, pki):
    # S-TLS-05, P-TLS-07
    server = serve_tls()
    with tls_wire(server.uri, pki.client) as link:
        assert link.ask(wire.STARTTLS)[-1][0] == wire.INVALID
        assert link.ask(wire.STARTTLS, b"x")[-1][0] == wire.INVALID
        assert link.ask(wire.LIST)[-1][0] == wire.ACK


@pytest.mark.parametrize("behind", ["option", "half an option", "hello"])
def test_plaintext_behind_starttls_is_never_obeyed(serve_tls, behind):
    # S-TLS-12, P-TLS-11: STARTTLS injection
    server = serve_tls(stderr=REFUSED)
    smuggled = {"option": struct_list(), "half an option": struct_list()[:7], "hello": b"\x16\x03\x01\x00\x05hello"}[behind]
    with wire.Wire(server.uri) as link:
        link.greet()
        link.send(b"IHAVEOPT" + bytes([0, 0, 0, 5, 0, 0, 0, 0]) + smuggled)
        # Not even the ACK.
        assert link.is_closed()
    server.wait_for(lambda: "bytes in clear behind STARTTLS" in server.err, "a word in the log")


def test_plaintext_after_the_ack_is_never_obeyed(serve_tls):
    # S-TLS-12, P-TLS-06: what comes a little later meets TLS, which cannot make sense of it
    server = serve_tls(stderr=REFUSED)
    with start_tls(server.uri) as link:
        link.send(struct_list())
        rest = b""
        try:
            while part := link.link.recv(4096):
                rest += part
        except ConnectionError:
            pass
        assert not rest.startswith((0x0003E889045565A9).to_bytes(8, "big"))
    server.wait_for(lambda: "TLS: the handshake failed" in server.err, "a word in the log")


def test_agreements_in_clear_are_void(serve_tls, pki):
    # S-SR-05, S-CVE-22, P-TLS-10, P-OPT-11: CVE-2021-3716
    server = serve_tls(X509, "--tls", "optional")
    with wire.Wire(server.uri) as link:
        link.greet()
        assert link.ask(wire.STRUCTURED)[-1][0] == wire.ACK
        assert link.ask(wire.SET_META, link.meta_data("", "base:allocation"))[-1][0] == wire.ACK
        assert link.ask(wire.STARTTLS)[-1][0] == wire.ACK
        link.link = client_context(pki.client).wrap_socket(link.link, server_hostname="localhost")
        assert link.ask(wire.SET_META, link.meta_data("", "base:allocation"))[-1][0] == wire.INVALID
        link.choose()
        # A simple reply: nothing else was agreed on.
        assert link.read(0, 512) == (0, bytes(512))


def test_optional_tls_hides_what_requires_it(serve, pki, disk, directory):
    # P-TLS-08, P-TLS-02
    other = directory / "other"
    other.write_bytes(bytes(1 << 20))
    server = serve(
        extra=["--export", f"name=open,file={disk}", "--export", f"name=secret,file={other},tls=required",
               *server_options(pki, X509, "--tls", "optional")], stderr=None)
    assert [uri.split("://")[0] for uri in server.uris] == ["nbd+unix", "nbds+unix"]
    assert "export-size: 67108864" in out(need("nbdinfo"), server.uris[0])
    with wire.Wire(server.uris[0]) as link:
        link.greet()
        assert link.ask(wire.INFO, link.info_data("secret"))[-1][0] == wire.TLS_REQD
        assert link.ask(wire.INFO, link.info_data("nothing"))[-1][0] == wire.TLS_REQD
        names = [data for kind, data in link.ask(wire.LIST) if kind == wire.SERVER]
        assert len(names) == 1 and b"open" in names[0]
        link.option(wire.EXPORT_NAME, b"secret")
        assert link.is_closed()
    assert "export-size: 1048576" in out(need("nbdinfo"), client_uri(pki, server.uris[1], X509))
    assert len(re.findall("^export=", out(NBD, "list", client_uri(pki, server.uris[1], X509)), re.M)) == 2


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_goodbye_is_said(serve_tls, pki, version):
    # S-TLS-13, P-TLS-12, P-TERM-07: an end without a close_notify raises SSLEOFError
    server = serve_tls()
    with tls_wire(server.uri, pki.client, version) as link:
        link.choose()
        assert link.read(0, 4096) == (0, bytes(4096))
        link.request(wire.DISC)
        assert link.link.recv(1) == b""
    with tls_wire(server.uri, pki.client, version) as link:
        assert link.ask(wire.ABORT)[-1][0] == wire.ACK
        assert link.link.recv(1) == b""


def test_a_client_that_says_no_goodbye_holds_nothing(serve_tls, pki):
    # S-TLS-13: neither close_notify nor its absence is waited for
    server = serve_tls()
    before = server.descriptors()
    links = [tls_wire(server.uri, pki.client) for _ in range(5)]
    for link in links:
        link.choose()
    for link in links:
        link.link._sslobj = None
        link.link.close()
    server.wait_for(lambda: server.descriptors() <= before, "all descriptors back", limit=5)


@pytest.mark.parametrize("stop", ["before STARTTLS", "before the hello", "in the hello"])
def test_the_deadline_covers_tls(serve_tls, pki, stop):
    # S-TLS-11, S-HS-11, P-TLS-15: one limit for greeting, options and TLS together
    server = serve_tls(handshake_limit=2, stderr=REFUSED)
    started = time.monotonic()
    link = wire.Wire(server.uri)
    link.greet()
    if stop != "before STARTTLS":
        assert link.ask(wire.STARTTLS)[-1][0] == wire.ACK
    if stop == "in the hello":
        link.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    # S-TLS-10, P-TLS-15: others are served meanwhile
    assert "with TLS" in out(need("nbdinfo"), client_uri(pki, server.uri, X509))
    assert link.is_closed()
    assert 1.5 < time.monotonic() - started < 8
    link.link.close()
    server.wait_for(lambda: "handshake not finished in time" in server.err, "a word in the log")


def test_many_half_handshakes_hold_up_nobody(serve_tls, pki):
    # S-TLS-10, S-BUG-17, S-NEW-09
    server = serve_tls()
    links = [start_tls(server.uri) for _ in range(10)]
    started = time.monotonic()
    assert "with TLS" in out(need("nbdinfo"), client_uri(pki, server.uri, X509))
    assert time.monotonic() - started < 8
    for link in links:
        link.link.close()


# Who must be turned away, one by one (S-TLS-07)


def turned_away(server, pki, directory, reason=None):
    """libnbd and a client by hand, both with the certificate in `directory`, get nothing."""
    uri = server.uri + f"{'&' if '?' in server.uri else '?'}tls-certificates={directory}"
    done = subprocess.run([need("nbdinfo"), "--size", uri], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0, done.stdout
    try:
        with tls_wire(server.uri, directory) as link:
            assert refused(link)
    except (ssl.SSLError, ConnectionError):
        pass
    server.wait_for(lambda: "TLS: " in server.err and (reason or "") in server.err, f"{reason} in the log")


def test_no_client_certificate(serve_tls, pki):
    turned_away(serve_tls(), pki, pki.bare)


def test_a_certificate_of_another_authority(serve_tls, pki):
    turned_away(serve_tls(), pki, pki.other_client, "CERTIFICATE_VERIFY_FAILED")


def test_an_expired_certificate(serve_tls, pki):
    expired = pki.sign_client(dates=('activation_date = "2020-01-01 00:00:00 UTC"', 'expiration_date = "2021-01-01 00:00:00 UTC"'))
    turned_away(serve_tls(), pki, pki.directory("expired", client=expired), "CERTIFICATE_VERIFY_FAILED")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize("change", ["expired", "revoked"])
def test_no_session_is_resumed(serve_tls, pki, version, change):
    # S-TLS-07: a resumed session would be as good as the day it began, whatever has become of the certificate since
    seconds = 4
    end = time.time() + seconds
    dates = tuple(f'{key} = "{time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))}"'
                  for key, moment in (("activation_date", end - 3600), ("expiration_date", end)))
    client = pki.sign_client("short", **({"dates": dates} if change == "expired" else {}))
    mine = pki.directory(f"short-{change}-{version}", client=client)
    certificate = pki.sign_server()
    credentials = pki.directory(f"no-resumption-{change}-{version}", server=certificate)
    server = serve_tls(directory=credentials)
    context = client_context(mine)
    context.minimum_version = context.maximum_version = version
    with upgrade(server.uri, context) as link:
        link.choose()
        assert link.read(0, 512) == (0, bytes(512))
        session = link.link.session
    # As long as the certificate is good, the client comes in, by a whole handshake.
    with start_tls(server.uri) as link:
        link.link = context.wrap_socket(link.link, server_hostname="localhost", session=session)
        assert not link.link.session_reused
        link.choose()
        assert link.read(0, 512) == (0, bytes(512))
        session = link.link.session
    if change == "expired":
        time.sleep(max(0, end - time.time()) + 1.5)
    else:
        pki.directory(credentials.name, server=certificate, crl=pki.revoke(client[0]))
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: "TLS credentials read again" in server.err, "a word of success")
    try:
        with start_tls(server.uri) as link:
            link.link = context.wrap_socket(link.link, server_hostname="localhost", session=session)
            assert refused(link)
    except (ssl.SSLError, ConnectionError):
        pass
    reason = {"expired": "CERTIFICATE_VERIFY_FAILED", "revoked": "revoked"}[change]
    server.wait_for(lambda: "TLS: " in server.err and reason in server.err, f"{reason} in the log")


def test_a_certificate_that_is_not_valid_yet(serve_tls, pki):
    early = pki.sign_client(dates=('activation_date = "2090-01-01 00:00:00 UTC"', 'expiration_date = "2091-01-01 00:00:00 UTC"'))
    turned_away(serve_tls(), pki, pki.directory("early", client=early), "CERTIFICATE_VERIFY_FAILED")


def test_a_certificate_for_servers(serve_tls, pki):
    wrong = pki.sign_client(purpose=("tls_www_server", "signing_key"))
    turned_away(serve_tls(), pki, pki.directory("wrong-purpose", client=wrong), "CERTIFICATE_VERIFY_FAILED")


def test_a_revoked_certificate(serve_tls, pki):
    revoked, good = pki.sign_client("revoked"), pki.sign_client("good")
    credentials = pki.directory("with-crl", server=pki.sign_server(), crl=pki.revoke(revoked[0]))
    server = serve_tls(directory=credentials)
    turned_away(server, pki, pki.directory("revoked", client=revoked), "revoked")
    assert "with TLS" in out(need("nbdinfo"), client_uri(pki, server.uri, X509, pki.directory("good", client=good)))


def test_a_wrong_key(serve_tls, pki):
    server = serve_tls(PSK)
    wrong = psk_directory(pki.root / "wrong-psk", "alice", "mallory")
    for user in ("alice", "mallory"):
        uri = server.uri.replace("://", f"://{user}@", 1) + f"&tls-psk-file={wrong}/keys.psk"
        assert subprocess.run([need("nbdinfo"), "--size", uri], capture_output=True, timeout=60).returncode != 0
        assert subprocess.run([NBD, "info", "--size", uri], capture_output=True, timeout=60).returncode == 1
    server.wait_for(lambda: server.err.count("TLS: the handshake failed") >= 2, "words in the log")


def test_a_server_that_a_client_must_not_believe(serve_tls, pki, start):
    # P-TLS-14; our own client: wrong authority, wrong name, expired
    server = serve_tls(X509_ANY, tcp=["127.0.0.1"])
    uri = server.uri
    bare, other = pki.bare, pki.directory("other-authority", authority=pki.other_authority)
    assert "with TLS" in out(NBD, "info", f"{uri}?tls-certificates={bare}")
    assert "with TLS" in out(NBD, "info", f"{uri.replace('127.0.0.1', 'localhost')}?tls-certificates={bare}")
    for words in (
        f"?tls-certificates={other}", f"?tls-certificates={bare}&tls-hostname=elsewhere.example", "",
    ):
        done = run(NBD, "info", uri + words, status=1, env={"HOME": "/nonexistent"})
        assert "TLS: " in done.stderr, done.stderr
    assert "with TLS" in out(NBD, "info", f"{uri}?tls-verify-peer=0", env={"HOME": "/nonexistent"})
    assert "with TLS" in out(NBD, "info", f"{uri}?tls-certificates={other}&tls-verify-peer=0")


def test_a_revoked_server(serve_tls, pki):
    certificate = pki.sign_server()
    credentials = pki.directory("revoked-server", server=certificate)
    server = serve_tls(X509_ANY, directory=credentials)
    careful = pki.directory("careful", crl=pki.revoke(certificate[0]))
    done = run(NBD, "info", client_uri(pki, server.uri, X509_ANY, careful), status=1)
    assert "revoked" in done.stderr


# Who may come in (S-TLS-08)


DN = "O=Example,CN=client"


@pytest.mark.parametrize("who", ["ours", "qemu-nbd"])
def test_the_name_is_the_one_that_qemu_sees(who, serve_tls, start, pki, disk, directory):
    # S-TLS-08: the same object lets the same client in, here and there; each comma is written twice
    for identity, comes_in in ((DN, True), ("CN=client,O=Example", False), ("O=Example,CN=other", False)):
        authz = ["--object", f"authz-simple,id=who,identity={identity.replace(',', ',,')}", "--tls-authz", "who"]
        if who == "ours":
            server = serve_tls(X509, *authz)
            uri = server.uri
        else:
            path = directory / f"q{comes_in}{len(identity)}{identity[:2]}"
            start(need("qemu-nbd"), "-t", "-f", "raw", "-k", path, *server_options(pki, X509), *authz, disk,
                  await_uri=False).wait_for_socket(path)
            uri = f"nbds+unix:///?socket={path}"
        done = subprocess.run([need("nbdinfo"), "--size", client_uri(pki, uri, X509)], capture_output=True, timeout=60)
        assert (done.returncode == 0) == comes_in, (identity, done)
        if who == "ours":
            server.stop(stderr=None)  # the image is locked while it is served


def test_the_user_of_a_key_is_a_name(serve_tls, pki):
    # S-TLS-08
    server = serve_tls(PSK, "--object", "authz-simple,id=who,identity=alice", "--tls-authz", "who")
    assert out(need("nbdinfo"), "--size", client_uri(pki, server.uri, PSK)).strip() == "67108864"
    uri = server.uri.replace("://", "://qemu@", 1) + f"&tls-psk-file={pki.psk}/keys.psk"
    assert subprocess.run([need("nbdinfo"), "--size", uri], capture_output=True, timeout=60).returncode != 0


def test_names_are_asked_of_clients_with_tls_only(serve, pki, disk, directory):
    # S-TLS-08, P-TLS-08: where TLS is optional, what is public stays public
    other = directory / "other"
    other.write_bytes(bytes(1 << 20))
    server = serve(
        extra=["--export", f"name=open,file={disk}", "--export", f"name=secret,file={other},tls=required", "--default-export", "open",
               *server_options(pki, X509, "--tls", "optional", "--object", "authz-simple,id=who,identity=O=Example,,CN=other",
                               "--tls-authz", "who")], stderr=None)
    assert out(need("nbdinfo"), "--size", server.uris[0]).strip() == "67108864"
    with wire.Wire(server.uris[0]) as link:
        link.greet()
        assert link.ask(wire.INFO, link.info_data("secret"))[-1][0] == wire.TLS_REQD
    done = subprocess.run([need("nbdinfo"), "--size", client_uri(pki, server.uris[1], X509)], capture_output=True, timeout=60)
    assert done.returncode != 0
    server.wait_for(lambda: "not let in" in server.err and f"tls-dn={DN} uid={os.getuid()}" in server.err, "who that was in the log")
    good = pki.directory("the-other", client=pki.sign_client("other"))
    assert out(need("nbdinfo"), "--size", client_uri(pki, server.uris[1], X509, good)).strip() == "1048576"


# Our client


def test_our_client_on_qemu_nbd(pki, start, disk, directory):
    for kind in KINDS:
        path = directory / f"q{KINDS.index(kind)}"
        start(need("qemu-nbd"), "-t", "-e", "0", "-f", "raw", "-k", path, "-x", "d", *server_options(pki, kind), disk,
              await_uri=False).wait_for_socket(path)
        uri = client_uri(pki, f"nbds+unix:///d?socket={path}", kind)
        assert "with TLS" in out(NBD, "info", uri)
        assert "export=\"d\"" in out(NBD, "list", uri)
        # P-TLS-08: in clear we are told what to do
        done = run(NBD, "info", f"nbd+unix:///d?socket={path}", status=1)
        assert "ERR_TLS_REQD" in done.stderr


def test_our_client_on_nbdkit(pki, start, directory):
    if "tls=yes" not in out(need("nbdkit"), "--dump-config"):
        missing("nbdkit with TLS")
    for kind in KINDS:
        path = directory / f"k{KINDS.index(kind)}"
        words = {X509: [f"--tls-certificates={pki.server}", "--tls-verify-peer"], X509_ANY: [f"--tls-certificates={pki.server}"],
                 PSK: [f"--tls-psk={pki.psk}/keys.psk"]}[kind]
        start(need("nbdkit"), "-f", "-U", path, "--tls=require", *words, "memory", "1M", await_uri=False).wait_for_socket(path)
        assert "with TLS" in out(NBD, "info", client_uri(pki, f"nbds+unix:///?socket={path}", kind))


def test_our_client_wants_tls_or_nothing(serve, disk, pki):
    # P-URI-01: a server, or somebody between, that refuses TLS gets no second chance in clear
    server = serve(disk)
    done = run(NBD, "info", client_uri(pki, server.uri.replace("nbd+", "nbds+"), X509), status=1)
    assert "no TLS with this server" in done.stderr and "ERR_POLICY" in done.stderr


def test_list_mode_of_the_personality(serve_tls, pki, directory):
    # S-TLS-14
    server = serve_tls(tcp=["127.0.0.1"])
    qemu_nbd = directory / "qemu-nbd"
    qemu_nbd.symlink_to(NBD)
    words = ["-L", "-b", "127.0.0.1", "-p", server.port, "--object", f"tls-creds-x509,id=t,dir={pki.client},endpoint=client", "--tls-creds", "t"]
    assert "exports available: 1" in out(qemu_nbd, *words)
    assert "exports available: 1" in out(qemu_nbd, *words, "--tls-hostname", "localhost")
    assert "TLS" in run(qemu_nbd, *words, "--tls-hostname", "elsewhere", status=1).stderr
    assert "export list" in run(qemu_nbd, *words, "--tls-authz", "x", status=1).stderr


# Life


def test_certificates_are_read_again(serve_tls, pki):
    # SIGHUP: for new connections; what cannot be read changes nothing
    credentials = pki.directory("reload", server=pki.sign_server())
    revoked = pki.sign_client("late")
    mine = pki.directory("late", client=revoked)
    server = serve_tls(directory=credentials)
    old = tls_wire(server.uri, mine)
    old.choose()
    (credentials / "server-cert.pem").write_text("nonsense")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: "not read again" in server.err, "a complaint")
    assert "with TLS" in out(need("nbdinfo"), client_uri(pki, server.uri, X509, mine))
    pki.directory("reload", server=pki.sign_server(), crl=pki.revoke(revoked[0]))
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: "TLS credentials read again" in server.err, "a word of success")
    turned_away(server, pki, mine, "revoked")
    # Who was there before stays.
    assert old.read(0, 512) == (0, bytes(512))
    old.link.close()


def test_keys_come_and_go(serve_tls, pki):
    # S-TLS-08: SIGHUP; a user who is taken out of the file does not come in any more, one who is added does
    mine = psk_directory(pki.root / "changing-psk", "alice")
    server = serve_tls(PSK, "--allow", "tls-user=alice,may=all", "--allow", "tls-user=bob,may=list+read", directory=mine)
    psk_directory(mine, "bob")
    both = pki.root / "both.psk"
    both.write_text((mine / "keys.psk").read_text())

    def answer(user):
        uri = server.uri.replace("://", f"://{user}@", 1) + f"&tls-psk-file={both}"
        done = subprocess.run([need("nbdinfo"), "--json", uri], capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout)["exports"][0]["is_read_only"] if done.returncode == 0 else None

    def reload(count):
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: server.err.count("TLS credentials read again") == count, "a word of success")

    assert (answer("alice"), answer("bob")) == (False, None)
    reload(1)
    assert (answer("alice"), answer("bob")) == (False, True)
    (mine / "keys.psk").write_text("".join(line for line in both.read_text().splitlines(True) if line.startswith("bob:")))
    reload(2)
    assert (answer("alice"), answer("bob")) == (None, True)
    server.stop(stderr=None)


@pytest.mark.parametrize("words, reason", [
    (["--tls-creds", "tls0"], "there are no TLS credentials 'tls0'"),
    (["--object", "tls-creds-x509,id=tls0,dir=/nonexistent,endpoint=client", "--tls-creds", "tls0"], "endpoint=server"),
    (["--object", "tls-creds-anon,id=tls0,endpoint=server", "--tls-creds", "tls0"], "anonymous"),
    (["--tls-authz", "x"], "not permitted without --tls-creds"),
    (["--tls", "optional"], "--tls needs --tls-creds"),
    (["--tls-hostname", "x"], "for clients"),
    (["--allow", "may=all", "--deny", "tls-dn=CN=x"], "--deny 'tls-dn=CN=x': 'tls-dn' fits nobody"),
    (["--object", "tls-creds-x509,id=t,dir=/x,endpoint=server,verify-peer=off", "--tls-creds", "t", "--allow", "may=all", "--deny", "tls-dn=CN=x"],
     "with verify-peer=off, no client shows a certificate"),
])
def test_command_lines_that_make_no_sense(disk, words, reason):
    # S-TLS-14, S-TLS-09
    done = run(NBD, "serve", disk, *words, status=64)
    assert reason in done.stderr


def test_an_expired_certificate_of_ours_is_found_at_the_start(pki, disk):
    expired = pki.sign_server(dates=('activation_date = "2020-01-01 00:00:00 UTC"', 'expiration_date = "2021-01-01 00:00:00 UTC"'))
    path = pki.directory("expired-server", server=expired)
    done = run(NBD, "serve", disk, *server_options(pki, X509, directory=path), status=1)
    assert f"{path}/server-cert.pem: the certificate has expired" in done.stderr


def test_the_personality_serves_tls(start, pki, disk, directory):
    # S-TLS-01, S-TLS-14
    qemu_nbd, path = directory / "qemu-nbd", directory / "s"
    qemu_nbd.symlink_to(NBD)
    start(qemu_nbd, "-t", "-f", "raw", "-k", path, *server_options(pki, X509), disk, await_uri=False).wait_for_socket(path)
    assert "with TLS" in out(need("nbdinfo"), client_uri(pki, f"nbds+unix:///?socket={path}", X509))


def test_the_configuration_file(serve, pki, disk, directory):
    config = directory / "nbd.toml"
    config.write_text(f'[tls]\ndirectory = "{pki.server}"\nmode = "optional"\n[[exports]]\nname = "d"\nfile = "{disk}"\ntls = "required"\n')
    server = serve(extra=["--config", config], stderr=None)
    assert server.uri.startswith("nbds+unix")
    assert "with TLS" in out(need("nbdinfo"), client_uri(pki, server.uri, X509))
